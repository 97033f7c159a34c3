// The policy of the block programs that is the GPU. docs/persistent.md argues why the flags order memory as they must.
#pragma once
#include "cuda/persistent/product.h"

namespace fusedrnn {
namespace persistent {
namespace {

__device__ inline unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// D += A B of a warp.
__device__ inline void mma(Bfloat16, Fragments f) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(f.d[0]), "+f"(f.d[1]), "+f"(f.d[2]), "+f"(f.d[3])
      : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
}
__device__ inline void mma(Float16, Fragments f) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(f.d[0]), "+f"(f.d[1]), "+f"(f.d[2]), "+f"(f.d[3])
      : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
}
__device__ inline void mma(float, Fragments f) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(f.d[0]), "+f"(f.d[1]), "+f"(f.d[2]), "+f"(f.d[3])
      : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
}

template <class Thread>
class DevicePolicy {
 public:
  __device__ int block() const { return static_cast<int>(blockIdx.x); }
  template <class F>
  __device__ void each(F f) {
    f(static_cast<int>(threadIdx.x), mine_);
  }
  __device__ void barrier() { __syncthreads(); }
  template <class T, class F>
  __device__ void mma(F fragments) {
    persistent::mma(T(), fragments(mine_));
  }

  __device__ void store_partial(int, int index, float value) { shared()[index] = value; }
  __device__ float load_partial(int, int index) { return shared()[index]; }

  // Both past L1, which is not coherent between multiprocessors.
  template <class T>
  __device__ void store_exchange(T* at, T value) {
    __stcg(&at->bits, value.bits);
  }
  __device__ void store_exchange(float* at, float value) { __stcg(at, value); }
  __device__ Words load_exchange(const void* buffer, int index) {
    const uint4 words = __ldcg(static_cast<const uint4*>(buffer) + index);
    return {{words.x, words.y, words.z, words.w}};
  }

  __device__ void publish(unsigned* flag, unsigned value) {
    if (threadIdx.x == 0) store_release(flag, value);
  }
  __device__ void wait(const unsigned* flags, int count, unsigned value) {
    if (threadIdx.x < 32)
      for (int i = static_cast<int>(threadIdx.x); i < count; i += 32)
        while (load_acquire(flags + i) < value) {
        }
    __syncthreads();
  }

 private:
  __device__ static float* shared() {
    extern __shared__ float partial_sums[];
    return partial_sums;
  }
  Thread mine_;
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
