// The diffusion family on CUDA devices: from tensors to the kernels of diffusion.cuh.
#include <cmath>

#include "cuda/diffusion.cuh"
#include "cuda/operands.cuh"

namespace genkern::cuda {
namespace {

// What every operator of the family takes.
struct Source {
  const OptionalTensor &key, &noise;
  Tensor coefficients;
  const OptionalTensor& t;

  Source(const OptionalTensor& key, const OptionalTensor& noise, const Tensor& coefficients,
         const OptionalTensor& t)
      : key(key), noise(noise), coefficients(coefficients), t(t) {
    if (coefficients.stride(1) != 1) this->coefficients = torch::stable::contiguous(coefficients);
  }

  // Something is each sample's own.
  bool by_sample() const {
    return (t ? t->dim() > 0 : coefficients.size(0) > 1) || (key && key->dim() > 1);
  }
};

template <class Acc>
Table<Acc> table(const Source& source) {
  const Tensor& c = source.coefficients;
  const auto& t = source.t;
  return {static_cast<const Acc*>(c.const_data_ptr()),
          t ? static_cast<const int64_t*>(t->const_data_ptr()) : nullptr, c.size(0),
          t || c.size(0) > 1 ? c.stride(0) : 0, t && t->dim() > 0 ? t->stride(0) : 0};
}

template <class Acc>
SampleValues<Acc> sample_values(const OptionalTensor& values, double fallback) {
  return {values ? static_cast<const Acc*>(values->const_data_ptr()) : nullptr,
          values ? values->stride(0) : 0, static_cast<Acc>(fallback)};
}

bool clips(double low, double high) { return low != -INFINITY || high != INFINITY; }

template <class Acc>
Clip<Acc> make_clip(double low, double high) {
  return {static_cast<Acc>(low), static_cast<Acc>(high)};
}

// Calls f(a value of the storage type, whether the noise comes from a key).
template <class F>
void dispatch_noise(const Tensor& like, const char* op, const Source& source, F f) {
  dispatch(like.scalar_type(), op, [&](auto storage) {
    with_flag(source.key.has_value(), [&](auto key) { f(storage, key); });
  });
}

template <int kTensors>
void noise_operands(Planner<kTensors>& planner, int eps, const Source& source) {
  if (source.key) planner.key(*source.key);
  optional_input(planner, eps, source.noise);
}

void run_affine(const char* op, const Tensor& x, const OptionalTensor& y, const OptionalTensor& z,
                const Source& source, const Tensor& out) {
  dispatch_noise(x, op, source, [&](auto storage, auto key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = Affine<Acc, key.value>;
    Planner<Body::kTensors> planner(x.sizes());
    planner.input(Body::kX, x);
    optional_input(planner, Body::kY, y);
    optional_input(planner, Body::kZ, z);
    noise_operands(planner, Body::kEps, source);
    planner.output(Body::kOut, out);
    launch<T>(planner, Body{table<Acc>(source)}, x, {false, source.by_sample()});
  });
}

// The value; where the mask asks for it, the gradient of pred.
std::tuple<Tensor, Tensor> run_noise_loss(const char* op, const Tensor& pred,
                                          const OptionalTensor& x0, const Source& source,
                                          const OptionalTensor& sample_weight, int64_t reduction,
                                          int64_t mask) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor out, grad_pred;
  dispatch_noise(pred, op, source, [&](auto storage, auto from_key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = NoiseLoss<Acc, from_key.value>;
    Planner<Body::kTensors> planner(pred.sizes());
    planner.input(Body::kPred, pred);
    optional_input(planner, Body::kX0, x0);
    noise_operands(planner, Body::kEps, source);
    grad_pred = gradient(planner, Body::kGradPred, pred, pred, mask, 0);
    out = reduced_output(planner, Body::kLoss, pred, reduction);
    launch<T>(planner,
              Body{table<Acc>(source), sample_values<Acc>(sample_weight, 1),
                   static_cast<Acc>(1 / divisor(planner, reduction))},
              pred, {false, source.by_sample() || sample_weight.has_value()});
  });
  return {out, grad_pred};
}

template <bool kWithX0>
void run_sampler_step(const char* op, const Tensor& x_t, const Tensor& pred,
                      const OptionalTensor& var_values, const OptionalTensor& uncond,
                      const Source& source, const OptionalTensor& guidance_factor,
                      const OptionalTensor& threshold, double guidance_scale, double x0_min,
                      double x0_max, const Tensor& out, const OptionalTensor& x0 = {}) {
  dispatch_noise(x_t, op, source, [&](auto storage, auto key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = SamplerStep<Acc, key.value, kWithX0>;
    Planner<Body::kTensors> planner(x_t.sizes());
    planner.input(Body::kXt, x_t);
    planner.input(Body::kPred, pred);
    if (source.key || source.noise) optional_input(planner, Body::kVarValues, var_values);
    optional_input(planner, Body::kUncond, uncond);
    noise_operands(planner, Body::kEps, source);
    if (x0) planner.output(Body::kX0, *x0);
    planner.output(Body::kOut, out);
    const Body body{table<Acc>(source),
                    sample_values<Acc>(guidance_factor, 1),
                    sample_values<Acc>(threshold, 0),
                    static_cast<Acc>(guidance_scale),
                    make_clip<Acc>(x0_min, x0_max),
                    kWithX0 || threshold || clips(x0_min, x0_max)};
    launch<T>(planner, body, x_t,
              {false, source.by_sample() || guidance_factor.has_value() || threshold.has_value()});
  });
}

template <class Acc>
VlbConstants<Acc> vlb_constants(double x0_min, double x0_max, double vlb_scale, double simple_scale,
                                bool detach_mean) {
  return {static_cast<Acc>(vlb_scale), static_cast<Acc>(simple_scale),
          make_clip<Acc>(x0_min, x0_max), clips(x0_min, x0_max), detach_mean};
}

}  // namespace

Tensor affine(Tensor x, OptionalTensor y, OptionalTensor z, OptionalTensor key,
              OptionalTensor noise, Tensor coefficients, OptionalTensor t) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  run_affine("affine", x, y, z, {key, noise, coefficients, t}, out);
  return out;
}

void affine_out(Tensor x, OptionalTensor y, OptionalTensor z, OptionalTensor key,
                OptionalTensor noise, Tensor coefficients, OptionalTensor t, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  run_affine("affine_out", x, y, z, {key, noise, coefficients, t}, out);
}

Tensor noise_loss(Tensor pred, OptionalTensor x0, OptionalTensor key, OptionalTensor noise,
                  Tensor coefficients, OptionalTensor t, OptionalTensor sample_weight,
                  int64_t reduction) {
  return std::get<0>(run_noise_loss("noise_loss", pred, x0, {key, noise, coefficients, t},
                                    sample_weight, reduction, 0));
}

std::tuple<Tensor, Tensor> noise_loss_forming(Tensor pred, OptionalTensor x0, OptionalTensor key,
                                              OptionalTensor noise, Tensor coefficients,
                                              OptionalTensor t, OptionalTensor sample_weight,
                                              int64_t reduction) {
  return run_noise_loss("noise_loss_forming", pred, x0, {key, noise, coefficients, t},
                        sample_weight, reduction, 1);
}

std::tuple<Tensor, Tensor, Tensor> noise_loss_backward(Tensor grad, Tensor pred, OptionalTensor x0,
                                                       OptionalTensor key, OptionalTensor noise,
                                                       Tensor coefficients, OptionalTensor t,
                                                       OptionalTensor sample_weight,
                                                       int64_t reduction, int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const Source source(key, noise, coefficients, t);
  Tensor grad_pred, grad_x0, grad_noise;
  dispatch_noise(pred, "noise_loss_backward", source, [&](auto storage, auto from_key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = NoiseLossBackward<Acc, from_key.value>;
    Planner<Body::kTensors> planner(pred.sizes());
    upstream(planner, Body::kGrad, grad, reduction);
    planner.input(Body::kPred, pred);
    optional_input(planner, Body::kX0, x0);
    noise_operands(planner, Body::kEps, source);
    grad_pred = gradient(planner, Body::kGradPred, pred, pred, output_mask, 0);
    grad_x0 = gradient(planner, Body::kGradX0, x0, pred, output_mask, 1);
    grad_noise = gradient(planner, Body::kGradEps, noise, pred, output_mask, 2);
    launch<T>(planner,
              Body{table<Acc>(source), sample_values<Acc>(sample_weight, 1),
                   static_cast<Acc>(1 / divisor(planner, reduction))},
              pred,
              {false, source.by_sample() || sample_weight.has_value() || reduction == kSample});
  });
  return {grad_pred, grad_x0, grad_noise};
}

Tensor sampler_step(Tensor x_t, Tensor pred, OptionalTensor var_values, OptionalTensor uncond,
                    OptionalTensor key, OptionalTensor noise, Tensor coefficients, OptionalTensor t,
                    OptionalTensor guidance_factor, OptionalTensor threshold, double guidance_scale,
                    double x0_min, double x0_max) {
  const torch::stable::accelerator::DeviceGuard guard(x_t.get_device_index());
  Tensor out = torch::stable::empty_like(x_t);
  run_sampler_step<false>("sampler_step", x_t, pred, var_values, uncond,
                          {key, noise, coefficients, t}, guidance_factor, threshold, guidance_scale,
                          x0_min, x0_max, out);
  return out;
}

void sampler_step_out(Tensor x_t, Tensor pred, OptionalTensor var_values, OptionalTensor uncond,
                      OptionalTensor key, OptionalTensor noise, Tensor coefficients,
                      OptionalTensor t, OptionalTensor guidance_factor, OptionalTensor threshold,
                      double guidance_scale, double x0_min, double x0_max, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(x_t.get_device_index());
  run_sampler_step<false>("sampler_step_out", x_t, pred, var_values, uncond,
                          {key, noise, coefficients, t}, guidance_factor, threshold, guidance_scale,
                          x0_min, x0_max, out);
}

std::tuple<Tensor, Tensor> sampler_step_x0(Tensor x_t, Tensor pred, OptionalTensor var_values,
                                           OptionalTensor uncond, OptionalTensor key,
                                           OptionalTensor noise, Tensor coefficients,
                                           OptionalTensor t, OptionalTensor guidance_factor,
                                           OptionalTensor threshold, double guidance_scale,
                                           double x0_min, double x0_max) {
  const torch::stable::accelerator::DeviceGuard guard(x_t.get_device_index());
  Tensor out = torch::stable::empty_like(x_t), x0 = torch::stable::empty_like(x_t);
  run_sampler_step<true>("sampler_step_x0", x_t, pred, var_values, uncond,
                         {key, noise, coefficients, t}, guidance_factor, threshold, guidance_scale,
                         x0_min, x0_max, out, x0);
  return {out, x0};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sampler_step_backward(
    Tensor grad, Tensor x_t, Tensor pred, OptionalTensor var_values, OptionalTensor uncond,
    OptionalTensor key, OptionalTensor noise, Tensor coefficients, OptionalTensor t,
    double guidance_scale, double x0_min, double x0_max, int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(x_t.get_device_index());
  const Source source(key, noise, coefficients, t);
  Tensor grad_x_t, grad_pred, grad_values, grad_uncond, grad_noise;
  dispatch_noise(x_t, "sampler_step_backward", source, [&](auto storage, auto from_key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = SamplerStepBackward<Acc, from_key.value>;
    Planner<Body::kTensors> planner(x_t.sizes());
    planner.input(Body::kGrad, grad);
    planner.input(Body::kXt, x_t);
    planner.input(Body::kPred, pred);
    if (key || noise) optional_input(planner, Body::kVarValues, var_values);
    optional_input(planner, Body::kUncond, uncond);
    noise_operands(planner, Body::kEps, source);
    grad_x_t = gradient(planner, Body::kGradXt, x_t, x_t, output_mask, 0);
    grad_pred = gradient(planner, Body::kGradPred, pred, x_t, output_mask, 1);
    grad_values = gradient(planner, Body::kGradVarValues, var_values, x_t, output_mask, 2);
    grad_uncond = gradient(planner, Body::kGradUncond, uncond, x_t, output_mask, 3);
    grad_noise = gradient(planner, Body::kGradEps, noise, x_t, output_mask, 4);
    const Acc scale = uncond ? static_cast<Acc>(guidance_scale) : Acc(1);
    launch<T>(planner,
              Body{table<Acc>(source), scale, Acc(1) - scale, make_clip<Acc>(x0_min, x0_max),
                   clips(x0_min, x0_max)},
              x_t, {false, source.by_sample()});
  });
  return {grad_x_t, grad_pred, grad_values, grad_uncond, grad_noise};
}

Tensor guidance_factor(Tensor pred, Tensor uncond, double guidance_scale, double guidance_rescale) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  Tensor out;
  dispatch(pred.scalar_type(), "guidance_factor", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = GuidanceFactor<Acc>;
    Planner<Body::kTensors> planner(pred.sizes());
    planner.input(Body::kPred, pred);
    planner.input(Body::kUncond, uncond);
    out = reduced_output(planner, Body::kTensors, pred, kSample);
    Plan<Body::kTensors>& plan = planner.plan;
    const Walk walk = planner.build(false, true, true, kPackLanes<T>, kBlockElements<Acc>);
    if (plan.samples == 0) return;
    const Grid grid(plan, true, true);
    Body body{static_cast<Acc>(guidance_scale), guidance_rescale, nullptr};
    Tensor scratch;
    if (grid.blocks_a_result > 1) {
      constexpr int64_t kDoubles = sizeof(GuidanceMoments) / sizeof(double);
      const int64_t size[] = {grid.results * grid.blocks_a_result * kDoubles};
      scratch = torch::stable::new_empty(pred, size, ScalarType::Double);
      body.partials = static_cast<GuidanceMoments*>(scratch.mutable_data_ptr());
    }
    const cudaStream_t stream = current_stream(pred.get_device_index());
    with_walk(walk, [&](auto kind) {
      start(guidance_moments<Body, T, kind.value>, grid.blocks, grid.threads, stream, plan, body);
    });
    if (!body.partials) return;
    start(merge_moments<Acc>, grid.second_blocks(), grid.second_threads(), stream, body.partials,
          static_cast<Acc*>(plan.result), grid.results, grid.blocks_a_result, guidance_rescale);
  });
  return out;
}

Tensor dynamic_threshold(Tensor x_t, Tensor pred, OptionalTensor uncond, Tensor coefficients,
                         OptionalTensor t, OptionalTensor guidance_factor, double guidance_scale,
                         double ratio, double max_value) {
  const torch::stable::accelerator::DeviceGuard guard(x_t.get_device_index());
  const OptionalTensor none;
  const Source source(none, none, coefficients, t);
  Tensor out;
  dispatch(x_t.scalar_type(), "dynamic_threshold", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = DynamicThreshold<Acc>;
    Planner<Body::kTensors> planner(x_t.sizes());
    planner.input(Body::kXt, x_t);
    planner.input(Body::kPred, pred);
    optional_input(planner, Body::kUncond, uncond);
    out = reduced_output(planner, Body::kTensors, x_t, kSample);
    Plan<Body::kTensors>& plan = planner.plan;
    const Walk walk = planner.build(false, true, true, kPackLanes<T>, kBlockElements<Acc>);
    if (plan.samples == 0) return;
    const int64_t length = x_t.numel() / plan.samples;
    STD_TORCH_CHECK(length > 0, "dynamic_threshold: a sample has no elements");
    STD_TORCH_CHECK(length < int64_t{1} << 32,
                    "dynamic_threshold: expected samples of less than 2^32 elements, got ", length);
    const Body body{table<Acc>(source), sample_values<Acc>(guidance_factor, 1),
                    static_cast<Acc>(guidance_scale), ratio * static_cast<double>(length - 1),
                    max_value};
    plan.step = kThresholdThreads;
    const cudaStream_t stream = current_stream(x_t.get_device_index());
    with_walk(walk, [&](auto kind) {
      start(select_threshold<Body, T, kind.value>, static_cast<unsigned>(plan.samples),
            kThresholdThreads, stream, plan, body);
    });
  });
  return out;
}

Tensor vlb(Tensor pred, OptionalTensor var_values, Tensor x0, OptionalTensor key,
           OptionalTensor noise, Tensor coefficients, OptionalTensor t, double x0_min,
           double x0_max, double vlb_scale, double simple_scale, bool detach_mean,
           int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const Source source(key, noise, coefficients, t);
  Tensor out;
  dispatch_noise(pred, "vlb", source, [&](auto storage, auto from_key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = Vlb<Acc, from_key.value>;
    Planner<Body::kTensors> planner(pred.sizes());
    planner.input(Body::kPred, pred);
    optional_input(planner, Body::kVarValues, var_values);
    planner.input(Body::kX0, x0);
    noise_operands(planner, Body::kEps, source);
    out = reduced_output(planner, Body::kLoss, pred, reduction);
    launch<T>(planner,
              Body{table<Acc>(source),
                   vlb_constants<Acc>(x0_min, x0_max, vlb_scale, simple_scale, detach_mean)},
              pred, {false, source.by_sample()});
  });
  return out;
}

std::tuple<Tensor, Tensor> vlb_backward(Tensor grad, Tensor pred, OptionalTensor var_values,
                                        Tensor x0, OptionalTensor key, OptionalTensor noise,
                                        Tensor coefficients, OptionalTensor t, double x0_min,
                                        double x0_max, double vlb_scale, double simple_scale,
                                        bool detach_mean, int64_t reduction, int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const Source source(key, noise, coefficients, t);
  Tensor grad_pred, grad_values;
  dispatch_noise(pred, "vlb_backward", source, [&](auto storage, auto from_key) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = VlbBackward<Acc, from_key.value>;
    Planner<Body::kTensors> planner(pred.sizes());
    upstream(planner, Body::kGrad, grad, reduction);
    planner.input(Body::kPred, pred);
    optional_input(planner, Body::kVarValues, var_values);
    planner.input(Body::kX0, x0);
    noise_operands(planner, Body::kEps, source);
    grad_pred = gradient(planner, Body::kGradPred, pred, pred, output_mask, 0);
    grad_values = gradient(planner, Body::kGradVarValues, var_values, pred, output_mask, 1);
    launch<T>(planner,
              Body{table<Acc>(source),
                   vlb_constants<Acc>(x0_min, x0_max, vlb_scale, simple_scale, detach_mean),
                   static_cast<Acc>(1 / divisor(planner, reduction))},
              pred, {false, source.by_sample() || reduction == kSample});
  });
  return {grad_pred, grad_values};
}

}  // namespace genkern::cuda
