// The processor's floating-point control state: our own while we compute, the caller's again afterwards.
#pragma once
#include <cstdint>

namespace fusedrnn {

// Round to nearest, every exception masked, denormals flushed to zero: they would slow a step up to a hundredfold.
class FloatState {
 public:
  FloatState() : saved_(read()) { write(kOurs); }
  ~FloatState() { write(saved_); }
  FloatState(const FloatState&) = delete;
  FloatState& operator=(const FloatState&) = delete;

 private:
#if defined(__x86_64__)
  using Word = unsigned;
  static constexpr Word kOurs = 0x1f80 | 0x8000 | 0x0040;
  static Word read() { return __builtin_ia32_stmxcsr(); }
  static void write(Word word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
  using Word = std::uint64_t;
  static constexpr Word kOurs = Word(1) << 24;
  static Word read() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = int;
  static constexpr Word kOurs = 0;
  static Word read() { return 0; }
  static void write(Word) {}
#endif
  const Word saved_;
};

}  // namespace fusedrnn
