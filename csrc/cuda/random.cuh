// What a thread does with a slot in the kernels that draw numbers and nothing else.
#pragma once

#include "cuda/slot.cuh"

namespace genkern::cuda {

template <class Acc>
struct Normal {
  static constexpr int kTensors = 1;
  static constexpr bool kSums = false, kDraws = true, kBySample = false;
  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers z;
    slot.normals(z);
    slot.store(0, z);
  }
};

template <class Acc>
struct Uniform {
  static constexpr int kTensors = 1;
  static constexpr bool kSums = false, kDraws = true, kBySample = false;
  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers u;
    slot.uniforms(u);
    slot.store(0, u);
  }
};

}  // namespace genkern::cuda
