// How a kernel walks over its operands: built on the host from shapes and strides, read on the
// device.
//
// An operand is anything with strides over the logical shape: a tensor, the key, the gradient of a
// reduced value, and the noise index itself, whose strides are those of the logical order. So one
// rule joins the dimensions of all of them, and a channels-last tensor is walked in its memory
// order while every element still gets its own noise.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "genkern/philox.h"

namespace genkern::cuda {

constexpr int kThreads = 256;  // of a block
// After joining. More dimensions than this, none of which can be joined, are refused.
constexpr int kMaxDims = 12;
// Of Walk::kRows, the row included.
constexpr size_t kMaxRowDims = 3;

// Division by a constant: Granlund and Montgomery, "Division by invariant integers using
// multiplication", PLDI 1994, figure 4.1. Dividends stay below 2^63, so the sum does not overflow.
struct Divisor {
  uint64_t value = 1, factor = 1;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(uint64_t d) : value(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    const auto excess = static_cast<unsigned __int128>((uint64_t{1} << shift) - d);
    factor = static_cast<uint64_t>((excess << 64) / d) + 1;
  }
  __device__ uint64_t quotient(uint64_t n) const { return (__umul64hi(n, factor) + n) >> shift; }
};

// How a kernel's threads walk: see position.cuh.
enum class Walk { kFlat, kRows, kElements };

// A row is the innermost dimension, cut into slots of as many elements as a thread handles at once.
template <int kTensors>
struct Plan {
  // After the tensors: the gradient of a reduced value, the key, the noise index.
  enum { kScale = kTensors, kKey, kIndex, kOperands };

  void* tensor[kTensors] = {};  // null: not given, or not asked for
  int there[kTensors] = {};     // which are not null, quicker to test than an address
  const void* scale = nullptr;  // gradient of a reduced value, in the arithmetic type
  const uint64_t* key = nullptr;
  int64_t key_word_stride = 0;

  void* result = nullptr;         // reduced values, in the arithmetic type
  bool result_by_sample = false;  // one a sample, or one for all
  double* partials = nullptr;     // [result][block] where more than one block serves a result
  double divisor = 1;
  bool adds = false;  // to what is there

  int64_t samples = 1, repeats = 1, slots = 0, row = 1;
  int64_t tail = 0;    // Walk::kFlat: elements of a sample after its last whole slot
  uint32_t step = 1;   // from a thread's slot to its next: the threads that serve a sample
  int outer_dims = 0;  // the first one varies fastest
  Divisor row_slots, outer[kMaxDims];
  bool aligned = false;  // every row of every tensor starts at a multiple of 16 bytes
  int64_t outer_stride[kMaxDims][kOperands] = {};
  int64_t row_stride[kOperands] = {};
  int64_t sample_stride[kOperands] = {};
  int64_t repeat_stride[kOperands] = {};

  __device__ bool has(int i) const { return there[i] != 0; }
  __device__ Key key_at(int64_t offset) const {
    return {key[offset], key[offset + key_word_stride]};
  }
};

// Collects operands over a logical shape, then lays out the walk.
template <int kTensors>
class Planner {
 public:
  using Shape = torch::headeronly::IntHeaderOnlyArrayRef;
  static constexpr int kOperands = Plan<kTensors>::kOperands;
  static constexpr int kScale = Plan<kTensors>::kScale, kKey = Plan<kTensors>::kKey,
                       kIndex = Plan<kTensors>::kIndex;

  // `repeats`: a leading dimension of some operands (importance samples), absent in the others.
  Planner(Shape shape, int64_t repeats = 1) {
    sizes_.push_back(repeats);
    for (const int64_t n : shape) sizes_.push_back(n);
    for (auto& s : strides_) s.assign(sizes_.size(), 0);
  }

  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t size : sizes_) n *= size;
    return n;
  }
  int64_t batch() const { return sizes_.size() > 1 ? sizes_[1] : 1; }

  void input(int i, const torch::stable::Tensor& t) {
    set_tensor(i, const_cast<void*>(t.const_data_ptr()), t);
  }
  void output(int i, const torch::stable::Tensor& t) {
    set_tensor(i, t.mutable_data_ptr(), t);
    is_output_[i] = true;
  }
  // The gradient of a reduced value: a scalar, or one a sample.
  void scale(const torch::stable::Tensor& t) {
    plan.scale = t.const_data_ptr();
    if (t.dim() > 0 && sizes_.size() > 1) strides_[kScale][1] = t.stride(0);
  }
  // (2,): the element index runs over everything. (B, 2): over repeats and the rest of a sample.
  void key(const torch::stable::Tensor& t) {
    plan.key = static_cast<const uint64_t*>(t.const_data_ptr());
    plan.key_word_stride = t.stride(-1);
    const bool by_sample = t.dim() > 1;
    auto& index = strides_[kIndex];
    int64_t step = 1;
    for (size_t d = sizes_.size(); d-- > 0;) {
      if (by_sample && d == 1) continue;
      index[d] = step;
      step *= sizes_[d];
    }
    if (by_sample) strides_[kKey][1] = t.stride(0);
  }

  // Lays out the walk. `lanes`: elements in 16 bytes; `block`: elements a Philox block gives.
  // `loop_repeats`: one thread serves all repeats of an element. `by_sample`: dimension 0 stays
  // apart, and a thread serves one sample; `flat_samples`: by a SamplePlan if it can.
  Walk build(bool loop_repeats, bool by_sample, bool flat_samples, int lanes, int block) {
    dims_.clear();
    for (size_t d = 0; d < sizes_.size(); ++d) {
      Dim dim{sizes_[d], {}};
      for (int o = 0; o < kOperands; ++o) dim.stride[o] = strides_[o][d];
      if (d == 0 && loop_repeats) {
        plan.repeats = dim.size;
        std::copy(dim.stride, dim.stride + kOperands, plan.repeat_stride);
      } else if (d == 1 && by_sample) {
        plan.samples = dim.size;
        std::copy(dim.stride, dim.stride + kOperands, plan.sample_stride);
      } else if (dim.size != 1) {
        dims_.push_back(dim);
      }
    }
    sort();
    join();
    if (dims_.empty()) dims_.push_back({1, {}});
    if (!has_rows(lanes, block)) {
      lay_out(1);
      return Walk::kElements;
    }
    lay_out(lanes);
    if (!is_flat(flat_samples, lanes)) return Walk::kRows;
    plan.slots = plan.row / lanes;
    plan.tail = plan.row % lanes;
    return Walk::kFlat;
  }

  Plan<kTensors> plan;

 private:
  struct Dim {
    int64_t size;
    int64_t stride[kOperands];
  };

  void set_tensor(int i, void* data, const torch::stable::Tensor& t) {
    plan.tensor[i] = data;
    plan.there[i] = data != nullptr;
    const auto strides = t.strides();
    const size_t missing = sizes_.size() - strides.size();
    for (size_t d = 0; d < strides.size(); ++d) strides_[i][missing + d] = strides[d];
  }

  // Outputs are the last tensors and dense, so they decide; a stride of 0 says nothing.
  static bool inside(const Dim& a, const Dim& b) {
    for (int o = kTensors; o-- > 0;) {
      if (a.stride[o] == 0 || b.stride[o] == 0 || a.stride[o] == b.stride[o]) continue;
      return a.stride[o] < b.stride[o];
    }
    return false;
  }

  void sort() {
    for (size_t i = 1; i < dims_.size(); ++i)
      for (size_t j = i; j > 0 && inside(dims_[j - 1], dims_[j]); --j)
        std::swap(dims_[j - 1], dims_[j]);
  }

  void join() {
    std::vector<Dim> joined;
    for (const Dim& dim : dims_) {
      bool continues = !joined.empty();
      for (int o = 0; continues && o < kOperands; ++o)
        continues = joined.back().stride[o] == dim.stride[o] * dim.size;
      if (continues) {
        joined.back().size *= dim.size;
        std::copy(dim.stride, dim.stride + kOperands, joined.back().stride);
      } else {
        joined.push_back(dim);
      }
    }
    dims_ = joined;
    STD_TORCH_CHECK(dims_.size() <= kMaxDims + 1,
                    "genkern: expected strides that join into at most ", kMaxDims + 1,
                    " dimensions, got ", dims_.size());
  }

  // Every step of operand o except along a row is a multiple of n elements.
  bool steps_divide(int o, int64_t n) const {
    if (plan.sample_stride[o] % n || plan.repeat_stride[o] % n) return false;
    for (size_t d = 0; d + 1 < dims_.size(); ++d)
      if (dims_[d].stride[o] % n) return false;
    return true;
  }

  bool has_rows(int lanes, int block) {
    const Dim& row = dims_.back();
    if (dims_.size() > kMaxRowDims) return false;
    plan.aligned = true;
    for (int o = 0; o < kTensors; ++o) {
      if (!plan.tensor[o] || row.size == 1) continue;
      if (row.stride[o] != 1 && (row.stride[o] != 0 || is_output_[o])) return false;
      if (row.stride[o] == 1 &&
          (reinterpret_cast<uintptr_t>(plan.tensor[o]) % 16 || !steps_divide(o, lanes)))
        plan.aligned = false;
    }
    if (row.size == 1) return !plan.key || lanes == 1;
    if (row.stride[kScale] != 0 || row.stride[kKey] != 0) return false;
    return !plan.key || (row.stride[kIndex] == 1 && steps_divide(kIndex, block));
  }

  bool is_flat(bool flat_samples, int lanes) const {
    // A thread counts the slots in 32 bits: see FlatPosition.
    if (plan.slots > std::numeric_limits<int32_t>::max()) return false;
    if (dims_.size() > 1 || plan.repeats != 1 || !plan.aligned) return false;
    if (plan.samples != 1 && !flat_samples) return false;
    // A block works out one key: where samples have their own it must not serve several.
    if (plan.sample_stride[kKey] != 0 && plan.row / lanes <= kThreads / 2) return false;
    for (int o = 0; o < kTensors; ++o)
      if (plan.tensor[o] && plan.row > 1 && plan.row_stride[o] != 1) return false;
    return true;
  }

  void lay_out(int lanes) {
    const Dim& row = dims_.back();
    plan.row = row.size;
    std::copy(row.stride, row.stride + kOperands, plan.row_stride);
    plan.slots = (row.size + lanes - 1) / lanes;
    plan.row_slots = Divisor(plan.slots ? plan.slots : 1);
    plan.outer_dims = static_cast<int>(dims_.size()) - 1;
    for (int d = 0; d < plan.outer_dims; ++d) {
      const Dim& dim = dims_[plan.outer_dims - 1 - d];
      plan.outer[d] = Divisor(dim.size ? dim.size : 1);
      std::copy(dim.stride, dim.stride + kOperands, plan.outer_stride[d]);
      plan.slots *= dim.size;
    }
  }

  std::vector<int64_t> sizes_;
  std::vector<int64_t> strides_[kOperands];
  bool is_output_[kTensors] = {};
  std::vector<Dim> dims_;
};

}  // namespace genkern::cuda
