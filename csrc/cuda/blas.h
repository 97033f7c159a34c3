// cuBLAS, opened at run time from the path that Python finds, so that nothing needs it to import or to build.
#pragma once
#include <cstddef>
#include <string>

#include "core/arguments.h"

namespace fusedrnn {

// What cuBLAS's documentation asks for on the newest devices. It is a part of each call's own workspace: results are
// reproducible only if no two streams share one.
constexpr std::size_t kBlasWorkspace = std::size_t(32) << 20;

enum class BlasType { float32, float64, bfloat16, float16 };

// Column-major, C = A . B + beta C, C in float or double.
struct BlasGemm {
  BlasType type;
  bool tf32;
  Index m, n, k;
  bool a_transposed, b_transposed;
  const void *a, *b;
  void* c;
  Index a_stride, b_stride, c_stride;
  Index batch, a_batch, b_batch, c_batch;
  bool add;
};

// Throws std::runtime_error.
void open_blas(const std::string& path);
bool blas_is_open();

// A handle of the current device, for one call: none is used by two threads at a time, and none is ever destroyed, since
// that would wait for the device.
class Blas {
 public:
  Blas(int device, void* stream, void* workspace);
  ~Blas();
  Blas(const Blas&) = delete;
  void gemm(const BlasGemm& product);

 private:
  int device_;
  void* handle_;
};

}  // namespace fusedrnn
