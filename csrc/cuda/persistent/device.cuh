// The policy of the block programs that is the GPU. docs/persistent.md argues why its accesses order memory as they
// must.
#pragma once
#include "cuda/persistent/product.h"

namespace fusedrnn {
namespace persistent {
namespace {

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
  template <int kCount>
  __device__ void load_partials(int, int index, float (&values)[kCount]) {
    if constexpr (kCount == 2) {
      const float2 two = *reinterpret_cast<const float2*>(shared() + index);
      values[0] = two.x;
      values[1] = two.y;
    } else {
      values[0] = shared()[index];
    }
  }

  // Strong accesses, of a word each: docs/persistent.md argues from that. They go past L1.
  __device__ void store_exchange(std::uint32_t* at, std::uint32_t word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(word) : "memory");
  }
  __device__ Words load_exchange(const std::uint32_t* buffer, int index) {
    Words w;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
                 : "l"(buffer + 4 * index)
                 : "memory");
    return w;
  }
  template <class Ready, class Again>
  __device__ void await(Ready ready, Again again) {
    while (!ready(mine_)) again(static_cast<int>(threadIdx.x), mine_);
    __syncwarp();
  }
  __device__ void fence() { __threadfence(); }
  __device__ void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

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
