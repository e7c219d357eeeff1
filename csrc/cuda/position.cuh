// Where a slot lies in each operand, as an offset in elements: three ways to walk.
//
// In the first two a thread takes several neighbours of a row, in which an operand's step is 0
// or 1.
#pragma once

#include "cuda/plan.cuh"

namespace genkern::cuda {

// One aligned row is all there is, and every tensor runs along it, as contiguous or channels-last
// ones do; where a thread serves one sample, all there is of a sample. A slot is whole: the row's
// last few elements are slots of one lane.
template <int kLaneCount, class PlanType>
class FlatPosition {
 public:
  static constexpr int kLanes = kLaneCount;
  static constexpr bool kFlat = true;
  // Whole slots take 32 bits, see Planner::is_flat: an address is one instruction then.
  using Index = std::conditional_t<kLanes == 1, int64_t, uint32_t>;

  __device__ FlatPosition(const PlanType& plan, int64_t, Index slot) : plan_(plan), slot_(slot) {}

  __device__ int64_t repeats() const { return 1; }
  __device__ int64_t column() const { return static_cast<int64_t>(slot_) * kLanes; }
  __device__ int64_t offset(int operand, int64_t) const {
    return operand == PlanType::kKey || operand == PlanType::kScale ? 0 : column();
  }
  // In whole slots: the compiler, which cannot know that slot * kLanes does not overflow, would do
  // the multiplication and undo it.
  template <class T>
  __device__ T* pointer(int operand, int64_t) const {
    struct Lanes {
      T lane[kLanes];
    };
    return (static_cast<Lanes*>(plan_.tensor[operand]) + slot_)->lane;
  }
  // The block of a lane, where the first element's is `first`.
  template <int kBlock>
  __device__ uint64_t block_from(uint64_t first, int lane) const {
    if constexpr (kLanes == 1) {
      return first + static_cast<uint64_t>(slot_) / kBlock;
    } else {
      return first + wide_product(slot_, kLanes / kBlock) + lane / kBlock;
    }
  }

 private:
  const PlanType& plan_;
  Index slot_;
};

// Rows in up to two more dimensions, samples and repeats. Offsets are worked out where they are
// used: a kernel with a dozen tensors has no registers for them all.
template <int kLaneCount, class PlanType>
class RowPosition {
 public:
  static constexpr int kLanes = kLaneCount;
  static constexpr bool kFlat = false;
  using Index = int64_t;

  __device__ RowPosition(const PlanType& plan, int64_t sample, int64_t slot)
      : plan_(plan), sample_(sample), first_(plan.row_slots.quotient(slot)) {
    column_ = (slot - first_ * plan.row_slots.value) * kLanes;
    second_ = plan.outer[0].quotient(first_);
    first_ -= second_ * plan.outer[0].value;
  }

  __device__ int64_t repeats() const { return plan_.repeats; }
  __device__ int64_t column() const { return column_; }
  __device__ int64_t offset(int operand, int64_t repeat) const {
    return (plan_.row_stride[operand] != 0 ? column_ : 0) +
           first_ * plan_.outer_stride[0][operand] + second_ * plan_.outer_stride[1][operand] +
           sample_ * plan_.sample_stride[operand] + repeat * plan_.repeat_stride[operand];
  }

  template <class T>
  __device__ T* pointer(int operand, int64_t repeat) const {
    return static_cast<T*>(plan_.tensor[operand]) + offset(operand, repeat);
  }
  template <int kBlock>
  __device__ uint64_t block(int64_t repeat, int lane) const {
    return static_cast<uint64_t>(offset(PlanType::kIndex, repeat) + lane) / kBlock;
  }

 private:
  const PlanType& plan_;
  int64_t sample_, first_, second_, column_;
};

// One element, any number of dimensions, any strides.
template <class PlanType>
class ElementPosition {
 public:
  static constexpr int kLanes = 1;
  static constexpr bool kFlat = false;
  using Index = int64_t;

  __device__ ElementPosition(const PlanType& plan, int64_t sample, int64_t slot) : plan_(plan) {
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

  __device__ int64_t repeats() const { return plan_.repeats; }
  __device__ int64_t column() const { return column_; }
  __device__ int64_t offset(int operand, int64_t repeat) const {
    return offset_[operand] + repeat * plan_.repeat_stride[operand];
  }

  template <class T>
  __device__ T* pointer(int operand, int64_t repeat) const {
    return static_cast<T*>(plan_.tensor[operand]) + offset(operand, repeat);
  }
  template <int kBlock>
  __device__ uint64_t block(int64_t repeat, int lane) const {
    return static_cast<uint64_t>(offset(PlanType::kIndex, repeat) + lane) / kBlock;
  }

 private:
  const PlanType& plan_;
  int64_t column_, offset_[PlanType::kOperands];
};

template <Walk kWalk, int kLanes, class PlanType>
struct PositionOf {
  using type = ElementPosition<PlanType>;
};
template <int kLanes, class PlanType>
struct PositionOf<Walk::kFlat, kLanes, PlanType> {
  using type = FlatPosition<kLanes, PlanType>;
};
template <int kLanes, class PlanType>
struct PositionOf<Walk::kRows, kLanes, PlanType> {
  using type = RowPosition<kLanes, PlanType>;
};

}  // namespace genkern::cuda
