// Where a slot lies in each operand, as an offset in elements.
#pragma once

#include "cuda/plan.cuh"

namespace genkern::cuda {

// Several lanes. Offsets are worked out where they are used: a kernel with a dozen tensors has no
// registers for them all, and on contiguous tensors each is the column itself.
template <int kLanes, class PlanType>
class Position {
 public:
  __device__ Position(const PlanType& plan, int64_t sample, int64_t slot)
      : plan_(plan), sample_(sample) {
    uint64_t outer = 0;
    if (plan.outer_dims > 0) {
      outer = plan.row_slots.quotient(slot);
      slot -= outer * plan.row_slots.value;
    }
    column_ = slot * kLanes;
    if (plan.outer_dims > 1) {
      second_ = plan.outer[0].quotient(outer);
      outer -= second_ * plan.outer[0].value;
    }
    first_ = outer;
  }

  __device__ int64_t column() const { return column_; }

  __device__ int64_t offset(int operand, int64_t repeat) const {
    int64_t offset = plan_.row_stride[operand] != 0 ? column_ : 0;
    if (!plan_.flat)
      offset += first_ * plan_.outer_stride[0][operand] + second_ * plan_.outer_stride[1][operand] +
                sample_ * plan_.sample_stride[operand] + repeat * plan_.repeat_stride[operand];
    return offset;
  }

 private:
  const PlanType& plan_;
  int64_t sample_, column_, first_, second_ = 0;
};

// One lane: any number of dimensions and any strides.
template <class PlanType>
class Position<1, PlanType> {
 public:
  __device__ Position(const PlanType& plan, int64_t sample, int64_t slot) : plan_(plan) {
    uint64_t outer = plan.row_slots.quotient(slot);
    column_ = slot - outer * plan.row_slots.value;
#pragma unroll
    for (int o = 0; o < PlanType::kOperands; ++o)
      offset_[o] = sample * plan.sample_stride[o] + column_ * plan.row_stride[o];
#pragma unroll 1
    for (int d = 0; d < plan.outer_dims; ++d) {
      const uint64_t rest = plan.outer[d].quotient(outer);
      const int64_t coordinate = outer - rest * plan.outer[d].value;
#pragma unroll
      for (int o = 0; o < PlanType::kOperands; ++o)
        offset_[o] += coordinate * plan.outer_stride[d][o];
      outer = rest;
    }
  }

  __device__ int64_t column() const { return column_; }

  __device__ int64_t offset(int operand, int64_t repeat) const {
    return offset_[operand] + repeat * plan_.repeat_stride[operand];
  }

 private:
  const PlanType& plan_;
  int64_t column_, offset_[PlanType::kOperands];
};

}  // namespace genkern::cuda
