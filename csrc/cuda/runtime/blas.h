// cuBLAS, opened at run time from the path that Python finds, so that nothing needs it to import or to build.
#pragma once
#include <cstddef>
#include <string>

#include "cuda/runtime/product.h"

namespace fusedrnn {

// What cuBLAS's documentation asks for on the newest devices. It is a part of each call's own workspace: results are
// reproducible only if no two streams share one.
constexpr std::size_t kBlasWorkspace = std::size_t(32) << 20;

enum class BlasType { float32, float64, bfloat16, float16 };

// Throws std::runtime_error.
void open_blas(const std::string& path);
bool blas_is_open();

// A handle of the current device, for one call: none is used by two threads at a time, and none is ever destroyed,
// since that would wait for the device.
class Blas {
 public:
  Blas(int device, void* stream, void* workspace);
  ~Blas();
  Blas(const Blas&) = delete;
  // C of 16-bit factors is float. tf32: factors of type float32 may be rounded to it.
  void gemm(const ColumnMajor& product, BlasType type, bool tf32);

 private:
  int device_;
  void* handle_;
};

}  // namespace fusedrnn
