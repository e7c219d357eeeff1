// From the arguments of an operator to the operands of a kernel.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <type_traits>
#include <vector>

#include "cuda/ops.h"
#include "cuda/plan.cuh"

namespace genkern::cuda {

inline ScalarType reduced_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What a reduction divides the sum by. Dividing an empty sum by 0 gives NaN, as torch does.
template <int kTensors>
double divisor(const Planner<kTensors>& planner, int64_t reduction) {
  if (reduction == kMean) return static_cast<double>(planner.numel());
  if (reduction == kBatchMean) return static_cast<double>(planner.batch());
  return 1;
}

// The result of a reduction, or the tensor of unreduced values; the plan writes to it.
template <int kTensors>
Tensor reduced_output(Planner<kTensors>& planner, int tensor, const Tensor& like,
                      int64_t reduction) {
  if (reduction == kNone) {
    Tensor out = torch::stable::empty_like(like);
    planner.output(tensor, out);
    return out;
  }
  std::vector<int64_t> shape;
  if (reduction == kSample) shape.push_back(planner.batch());
  Tensor out = torch::stable::new_empty(like, shape, reduced_type(like));
  planner.plan.result = out.mutable_data_ptr();
  planner.plan.result_by_sample = reduction == kSample;
  planner.plan.divisor = divisor(planner, reduction);
  return out;
}

template <int kTensors>
void upstream(Planner<kTensors>& planner, int tensor, const Tensor& grad, int64_t reduction) {
  if (reduction == kNone) {
    planner.input(tensor, grad);
  } else {
    planner.scale(grad);
  }
}

template <int kTensors>
void optional_input(Planner<kTensors>& planner, int tensor, const OptionalTensor& t) {
  if (t) planner.input(tensor, *t);
}

// The gradient of `of` if bit `bit` of the mask asks for it, else an empty tensor like `like`.
template <int kTensors>
Tensor gradient(Planner<kTensors>& planner, int tensor, const OptionalTensor& of,
                const Tensor& like, int64_t mask, int bit) {
  if (!of || !(mask >> bit & 1)) {
    const int64_t empty[] = {0};
    return torch::stable::new_empty(like, empty);
  }
  Tensor out = torch::stable::empty_like(*of);
  planner.output(tensor, out);
  return out;
}

template <class F>
void with_flag(bool flag, F f) {
  if (flag) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

}  // namespace genkern::cuda
