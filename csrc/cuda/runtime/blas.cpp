#include "cuda/runtime/blas.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <vector>

#if __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
#endif

namespace fusedrnn {
namespace {

// The part of cuBLAS's interface that is used here; its numbers are fixed since version 11.
using Handle = void*;
using Status = int;
constexpr Status kSuccess = 0;
constexpr int kAsItIs = 0, kTransposed = 1;                               // cublasOperation_t
constexpr int kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 14;   // cudaDataType
constexpr int kCompute32 = 68, kCompute32FastTf32 = 77, kCompute64 = 70;  // cublasComputeType_t
constexpr int kDefaultAlgorithm = -1;                                     // cublasGemmAlgo_t
constexpr int kNoReducedPrecisionReduction = 16;                          // cublasMath_t: split sums stay in float

#if __has_include(<cublas_v2.h>)  // where the header is, it is held against them
static_assert(kSuccess == CUBLAS_STATUS_SUCCESS && kAsItIs == CUBLAS_OP_N && kTransposed == CUBLAS_OP_T);
static_assert(kFloat32 == CUDA_R_32F && kFloat64 == CUDA_R_64F && kFloat16 == CUDA_R_16F && kBfloat16 == CUDA_R_16BF);
static_assert(kCompute32 == CUBLAS_COMPUTE_32F && kCompute64 == CUBLAS_COMPUTE_64F &&
              kCompute32FastTf32 == CUBLAS_COMPUTE_32F_FAST_TF32 && kDefaultAlgorithm == CUBLAS_GEMM_DEFAULT &&
              kNoReducedPrecisionReduction == CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
static_assert(
    std::is_invocable_v<decltype(&cublasGemmStridedBatchedEx_64), cublasHandle_t, cublasOperation_t, cublasOperation_t,
                        std::int64_t, std::int64_t, std::int64_t, const void*, const void*, cudaDataType, std::int64_t,
                        long long, const void*, cudaDataType, std::int64_t, long long, const void*, void*, cudaDataType,
                        std::int64_t, long long, std::int64_t, cublasComputeType_t, cublasGemmAlgo_t>);
#endif

struct Functions {
  Status (*create)(Handle*);
  Status (*set_stream)(Handle, void*);
  Status (*set_workspace)(Handle, void*, std::size_t);
  Status (*set_math_mode)(Handle, int);
  Status (*gemm)(Handle, int, int, std::int64_t, std::int64_t, std::int64_t, const void*, const void*, int,
                 std::int64_t, long long, const void*, int, std::int64_t, long long, const void*, void*, int,
                 std::int64_t, long long, std::int64_t, int, int);
};
Functions functions;
bool opened = false;
std::mutex mutex;                           // of what is above and below
std::map<int, std::vector<Handle>> unused;  // by device

void check(Status status, const char* what) {
  if (status != kSuccess)
    throw std::runtime_error(std::string("cuBLAS error ") + std::to_string(status) + " in " + what);
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function)
    throw std::runtime_error(std::string("this cuBLAS has no ") + name + ": version 12 or newer is needed");
}

}  // namespace

void open_blas(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (opened) return;
  if (path.empty()) throw std::runtime_error("cuBLAS has no path");  // dlopen would give this process itself
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("cuBLAS cannot be opened: ") + dlerror());
  find(library, "cublasCreate_v2", functions.create);
  find(library, "cublasSetStream_v2", functions.set_stream);
  find(library, "cublasSetWorkspace_v2", functions.set_workspace);
  find(library, "cublasSetMathMode", functions.set_math_mode);
  find(library, "cublasGemmStridedBatchedEx_64", functions.gemm);
  opened = true;
}

bool blas_is_open() {
  const std::lock_guard<std::mutex> lock(mutex);
  return opened;
}

Blas::Blas(int device, void* stream, void* workspace) : device_(device), handle_(nullptr) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!opened) throw std::runtime_error("cuBLAS has not been opened");
    std::vector<Handle>& idle = unused[device];
    if (!idle.empty()) {
      handle_ = idle.back();
      idle.pop_back();
    }
  }
  if (!handle_) {
    check(functions.create(&handle_), "cublasCreate");
    check(functions.set_math_mode(handle_, kNoReducedPrecisionReduction), "cublasSetMathMode");
  }
  // In this order: setting the stream resets the workspace.
  check(functions.set_stream(handle_, stream), "cublasSetStream");
  if (workspace) check(functions.set_workspace(handle_, workspace, kBlasWorkspace), "cublasSetWorkspace");
}

Blas::~Blas() {
  const std::lock_guard<std::mutex> lock(mutex);
  unused[device_].push_back(handle_);
}

void Blas::gemm(const ColumnMajor& p, BlasType given, bool tf32) {
  const bool is_float64 = given == BlasType::float64;
  const float one = 1, beta = p.add ? 1 : 0;
  const double one64 = 1, beta64 = p.add ? 1 : 0;
  const int type = is_float64                    ? kFloat64
                   : given == BlasType::bfloat16 ? kBfloat16
                   : given == BlasType::float16  ? kFloat16
                                                 : kFloat32;
  const int compute = is_float64 ? kCompute64 : tf32 && type == kFloat32 ? kCompute32FastTf32 : kCompute32;
  check(functions.gemm(handle_, p.a_transposed ? kTransposed : kAsItIs, p.b_transposed ? kTransposed : kAsItIs, p.m,
                       p.n, p.k, is_float64 ? static_cast<const void*>(&one64) : &one, p.a, type, p.a_stride, p.a_batch,
                       p.b, type, p.b_stride, p.b_batch, is_float64 ? static_cast<const void*>(&beta64) : &beta, p.c,
                       is_float64 ? kFloat64 : kFloat32, p.c_stride, p.c_batch, p.batch, compute, kDefaultAlgorithm),
        "cublasGemmStridedBatchedEx");
}

}  // namespace fusedrnn
