// Python's global lock, let go of during a call.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace fusedrnn {

// Whether the interpreter is about to end: from then on only its own thread may take the lock.
inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Lets go of the lock, and takes it again at the end. A daemon thread whose call lasts beyond the end of the program
// waits here for the process to be gone. CPython before 3.14 would end the thread instead, from within the C++ code
// that asks for the lock; the destructor may be left in that way, as otherwise the whole process would be aborted.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() noexcept(false) {
    while (interpreter_ends()) std::this_thread::sleep_for(std::chrono::seconds(1));
    PyEval_RestoreThread(state_);
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* const state_;
};

}  // namespace fusedrnn
