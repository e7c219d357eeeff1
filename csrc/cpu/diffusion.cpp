#include <limits>

#include "cpu/arguments.h"

namespace genkern {
namespace {

// What every operator of the family takes.
struct Source {
  const Optional& key;
  const Optional& noise;
  const Tensor& coefficients;
  const Optional& t;
};

class DiffusionArguments : public Arguments {
 public:
  DiffusionArguments(const char* function, const Tensor& like)
      : Arguments(function, like), name_(function), dtype_(arithmetic(like.scalar_type())) {}

  // Fills in what the calls share.
  template <class C>
  C call(const Source& source, int64_t columns) {
    STD_TORCH_CHECK(!(source.key && source.noise), name_,
                    ": expected at most one of key and noise");
    C call{};
    call.type = type();
    call.shape = shape();
    call.parallel = parallel;
    if constexpr (requires_noise<C>) {
      call.keys = keys(source.key);
    }
    call.table = table(source.coefficients, source.t, columns);
    call.by_sample = call.table.varies();
    return call;
  }

  Table table(const Tensor& coefficients, const Optional& t, int64_t columns) const {
    check(coefficients, dtype_);
    STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(1) >= columns, name_,
                    ": expected coefficients of shape (rows, ", columns, ")");
    Table table{coefficients.data_ptr(), coefficients.size(0), coefficients.stride(0),
                coefficients.stride(1)};
    const int64_t batch = shape().samples;
    if (!t) {
      STD_TORCH_CHECK(table.rows == 1 || table.rows == batch, name_,
                      ": expected one row of coefficients, or one a sample, got ", table.rows);
      return table;
    }
    check(*t, ScalarType::Long);
    STD_TORCH_CHECK(t->dim() == 0 || (t->dim() == 1 && t->size(0) == batch), name_,
                    ": expected t of shape () or (", batch, ",)");
    table.t = static_cast<const int64_t*>(t->data_ptr());
    table.t_stride = t->dim() == 0 || batch == 1 ? 0 : t->stride(0);
    for (int64_t b = 0; b < (t->dim() ? batch : 1); ++b) {
      const int64_t row = table.t[b * table.t_stride];
      STD_TORCH_CHECK(row >= 0 && row < table.rows, name_, ": t must be in [0, ", table.rows,
                      "), got ", row, " at index ", b);
    }
    return table;
  }

  SampleValues per_sample(const Optional& values) const {
    if (!values) return {};
    check(*values, dtype_);
    STD_TORCH_CHECK(values->dim() == 1 && values->size(0) == shape().samples, name_,
                    ": expected one value a sample");
    return {values->data_ptr(), values->stride(0)};
  }

  // The result of a loss, which is always summed sample by sample.
  template <class C>
  Tensor result(const Tensor& like, C& call, int64_t reduction) {
    call.by_sample = true;
    call.reduction = Arguments::reduction(reduction);
    const bool whole = call.reduction == Reduction::kNone;
    Tensor out = whole ? new_like(like) : reduced(like, call.reduction);
    call.loss = whole ? view(out) : View{out.data_ptr()};
    return out;
  }

  template <class C>
  void upstream_of(const Tensor& grad, C& call, int64_t reduction) {
    call.reduction = Arguments::reduction(reduction);
    call.grad = upstream(grad, call.reduction);
  }

  // The gradient of `like` if output_mask asks for it, else an empty tensor.
  Tensor gradient(const Optional& like, const Tensor& dtype_of, int64_t output_mask, int bit,
                  View& out) const {
    if (!like || !(output_mask >> bit & 1)) return new_tensor({0}, dtype_of.scalar_type());
    Tensor grad = new_like(*like);
    out = view(grad);
    return grad;
  }

 private:
  template <class C>
  static constexpr bool requires_noise = !std::is_same_v<C, SampleStatistic>;

  const char* name_;
  ScalarType dtype_;
};

// Columns of the tables, as the kernels number them.
constexpr int64_t kLossColumns = 4, kStepColumns = 8, kVlbColumns = 8, kX0Columns = 2;

void run_affine(const char* function, const Tensor& x, const Optional& y, const Optional& z,
                const Source& source, const Tensor& out) {
  DiffusionArguments arguments(function, x);
  const bool noisy = source.key || source.noise;
  Affine call = arguments.call<Affine>(source, noisy ? 4 : z ? 3 : y ? 2 : 1);
  call.terms[0] = arguments.view(x);
  call.terms[1] = arguments.view(y);
  call.terms[2] = arguments.view(z);
  call.terms[3] = arguments.view(source.noise);
  call.out = arguments.view(out);
  if (x.numel()) GENKERN_KERNELS(diffusion).affine(call);
}

NoiseLoss noise_loss_call(DiffusionArguments& arguments, const Tensor& pred, const Optional& x0,
                          const Source& source, const Optional& sample_weight) {
  NoiseLoss call = arguments.call<NoiseLoss>(source, kLossColumns);
  call.pred = arguments.view(pred);
  call.x0 = arguments.view(x0);
  call.noise = arguments.view(source.noise);
  call.sample_weight = arguments.per_sample(sample_weight);
  return call;
}

SamplerStep step_call(DiffusionArguments& arguments, const Tensor& x_t, const Tensor& pred,
                      const Optional& var_values, const Optional& uncond, const Source& source,
                      double guidance_scale, double x0_min, double x0_max) {
  SamplerStep call = arguments.call<SamplerStep>(source, kStepColumns);
  call.x_t = arguments.view(x_t);
  call.pred = arguments.view(pred);
  call.var_values = arguments.view(var_values);
  call.uncond = arguments.view(uncond);
  call.noise = arguments.view(source.noise);
  call.guidance_scale = guidance_scale;
  call.x0_min = x0_min;
  call.x0_max = x0_max;
  return call;
}

void run_step(const char* function, const Tensor& x_t, const Tensor& pred,
              const Optional& var_values, const Optional& uncond, const Source& source,
              const Optional& guidance_factor, const Optional& threshold, double guidance_scale,
              double x0_min, double x0_max, const Tensor& out, const Optional& x0 = {}) {
  DiffusionArguments arguments(function, x_t);
  SamplerStep call =
      step_call(arguments, x_t, pred, var_values, uncond, source, guidance_scale, x0_min, x0_max);
  call.guidance_factor = arguments.per_sample(guidance_factor);
  call.threshold = arguments.per_sample(threshold);
  call.by_sample = call.by_sample || guidance_factor || threshold;
  call.out = arguments.view(out);
  call.x0 = arguments.view(x0);
  if (x_t.numel()) GENKERN_KERNELS(diffusion).sampler_step(call);
}

Vlb vlb_call(DiffusionArguments& arguments, const Tensor& pred, const Optional& var_values,
             const Tensor& x0, const Source& source, double x0_min, double x0_max, double vlb_scale,
             double simple_scale, bool detach_mean) {
  STD_TORCH_CHECK(source.key || source.noise, "vlb: expected key or noise, got neither");
  Vlb call = arguments.call<Vlb>(source, kVlbColumns);
  call.pred = arguments.view(pred);
  call.var_values = arguments.view(var_values);
  call.x0 = arguments.view(x0);
  call.noise = arguments.view(source.noise);
  call.x0_min = x0_min;
  call.x0_max = x0_max;
  call.vlb_scale = vlb_scale;
  call.simple_scale = simple_scale;
  call.detach_mean = detach_mean;
  return call;
}

}  // namespace

Tensor affine(const Tensor& x, const Optional& y, const Optional& z, const Optional& key,
              const Optional& noise, const Tensor& coefficients, const Optional& t) {
  Tensor out = new_like(x);
  run_affine("affine", x, y, z, {key, noise, coefficients, t}, out);
  return out;
}

void affine_out(const Tensor& x, const Optional& y, const Optional& z, const Optional& key,
                const Optional& noise, const Tensor& coefficients, const Optional& t,
                const Tensor& out) {
  run_affine("affine_out", x, y, z, {key, noise, coefficients, t}, out);
}

Tensor noise_loss(const Tensor& pred, const Optional& x0, const Optional& key,
                  const Optional& noise, const Tensor& coefficients, const Optional& t,
                  const Optional& sample_weight, int64_t reduction) {
  DiffusionArguments arguments("noise_loss", pred);
  NoiseLoss call =
      noise_loss_call(arguments, pred, x0, {key, noise, coefficients, t}, sample_weight);
  const Tensor out = arguments.result(pred, call, reduction);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(diffusion).noise_loss(call);
  return out;
}

std::tuple<Tensor, Tensor> noise_loss_forming(const Tensor& pred, const Optional& x0,
                                              const Optional& key, const Optional& noise,
                                              const Tensor& coefficients, const Optional& t,
                                              const Optional& sample_weight, int64_t reduction) {
  DiffusionArguments arguments("noise_loss_forming", pred);
  NoiseLoss call =
      noise_loss_call(arguments, pred, x0, {key, noise, coefficients, t}, sample_weight);
  const Tensor out = arguments.result(pred, call, reduction);
  const Tensor gradient = arguments.gradient(pred, pred, 1, 0, call.grad_pred);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(diffusion).noise_loss(call);
  return {out, gradient};
}

std::tuple<Tensor, Tensor, Tensor> noise_loss_backward(
    const Tensor& grad, const Tensor& pred, const Optional& x0, const Optional& key,
    const Optional& noise, const Tensor& coefficients, const Optional& t,
    const Optional& sample_weight, int64_t reduction, int64_t output_mask) {
  DiffusionArguments arguments("noise_loss_backward", pred);
  NoiseLoss call =
      noise_loss_call(arguments, pred, x0, {key, noise, coefficients, t}, sample_weight);
  call.by_sample = call.by_sample || sample_weight;
  arguments.upstream_of(grad, call, reduction);
  Tensor grad_pred = arguments.gradient(pred, pred, output_mask, 0, call.grad_pred);
  Tensor grad_x0 = arguments.gradient(x0, pred, output_mask, 1, call.grad_x0);
  Tensor grad_noise = arguments.gradient(noise, pred, output_mask, 2, call.grad_noise);
  if (pred.numel()) GENKERN_KERNELS(diffusion).noise_loss_backward(call);
  return {grad_pred, grad_x0, grad_noise};
}

Tensor sampler_step(const Tensor& x_t, const Tensor& pred, const Optional& var_values,
                    const Optional& uncond, const Optional& key, const Optional& noise,
                    const Tensor& coefficients, const Optional& t, const Optional& guidance_factor,
                    const Optional& threshold, double guidance_scale, double x0_min,
                    double x0_max) {
  Tensor out = new_like(x_t);
  run_step("sampler_step", x_t, pred, var_values, uncond, {key, noise, coefficients, t},
           guidance_factor, threshold, guidance_scale, x0_min, x0_max, out);
  return out;
}

void sampler_step_out(const Tensor& x_t, const Tensor& pred, const Optional& var_values,
                      const Optional& uncond, const Optional& key, const Optional& noise,
                      const Tensor& coefficients, const Optional& t,
                      const Optional& guidance_factor, const Optional& threshold,
                      double guidance_scale, double x0_min, double x0_max, const Tensor& out) {
  run_step("sampler_step_out", x_t, pred, var_values, uncond, {key, noise, coefficients, t},
           guidance_factor, threshold, guidance_scale, x0_min, x0_max, out);
}

std::tuple<Tensor, Tensor> sampler_step_x0(const Tensor& x_t, const Tensor& pred,
                                           const Optional& var_values, const Optional& uncond,
                                           const Optional& key, const Optional& noise,
                                           const Tensor& coefficients, const Optional& t,
                                           const Optional& guidance_factor,
                                           const Optional& threshold, double guidance_scale,
                                           double x0_min, double x0_max) {
  Tensor out = new_like(x_t), x0 = new_like(x_t);
  run_step("sampler_step_x0", x_t, pred, var_values, uncond, {key, noise, coefficients, t},
           guidance_factor, threshold, guidance_scale, x0_min, x0_max, out, x0);
  return {out, x0};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sampler_step_backward(
    const Tensor& grad, const Tensor& x_t, const Tensor& pred, const Optional& var_values,
    const Optional& uncond, const Optional& key, const Optional& noise, const Tensor& coefficients,
    const Optional& t, double guidance_scale, double x0_min, double x0_max, int64_t output_mask) {
  DiffusionArguments arguments("sampler_step_backward", x_t);
  SamplerStep call = step_call(arguments, x_t, pred, var_values, uncond,
                               {key, noise, coefficients, t}, guidance_scale, x0_min, x0_max);
  call.grad = arguments.view(grad);
  Tensor grad_x_t = arguments.gradient(x_t, x_t, output_mask, 0, call.grad_x_t);
  Tensor grad_pred = arguments.gradient(pred, x_t, output_mask, 1, call.grad_pred);
  Tensor grad_values = arguments.gradient(var_values, x_t, output_mask, 2, call.grad_var_values);
  Tensor grad_uncond = arguments.gradient(uncond, x_t, output_mask, 3, call.grad_uncond);
  Tensor grad_noise = arguments.gradient(noise, x_t, output_mask, 4, call.grad_noise);
  if (x_t.numel()) GENKERN_KERNELS(diffusion).sampler_step_backward(call);
  return {grad_x_t, grad_pred, grad_values, grad_uncond, grad_noise};
}

Tensor guidance_factor(const Tensor& pred, const Tensor& uncond, double guidance_scale,
                       double guidance_rescale) {
  Arguments arguments("guidance_factor", pred);
  SampleStatistic call{};
  call.type = arguments.type();
  call.shape = arguments.shape();
  call.parallel = parallel;
  call.by_sample = true;
  call.pred = arguments.view(pred);
  call.uncond = arguments.view(uncond);
  call.guidance_scale = guidance_scale;
  call.guidance_rescale = guidance_rescale;
  Tensor out = reduced(pred, Reduction::kSample);
  call.out = out.data_ptr();
  if (out.numel()) GENKERN_KERNELS(diffusion).guidance_factor(call);
  return out;
}

Tensor dynamic_threshold(const Tensor& x_t, const Tensor& pred, const Optional& uncond,
                         const Tensor& coefficients, const Optional& t,
                         const Optional& guidance_factor, double guidance_scale, double ratio,
                         double max_value) {
  DiffusionArguments arguments("dynamic_threshold", x_t);
  STD_TORCH_CHECK(ratio >= 0.0 && ratio <= 1.0, "dynamic_threshold: ratio must be in [0, 1], got ",
                  ratio);
  SampleStatistic call = arguments.call<SampleStatistic>({{}, {}, coefficients, t}, kX0Columns);
  call.by_sample = true;
  call.x_t = arguments.view(x_t);
  call.pred = arguments.view(pred);
  call.uncond = arguments.view(uncond);
  call.guidance_factor = arguments.per_sample(guidance_factor);
  call.guidance_scale = guidance_scale;
  call.ratio = ratio;
  call.max_value = max_value;
  Tensor out = reduced(x_t, Reduction::kSample);
  call.out = out.data_ptr();
  STD_TORCH_CHECK(x_t.numel() || !out.numel(), "dynamic_threshold: a sample has no elements");
  if (out.numel()) GENKERN_KERNELS(diffusion).dynamic_threshold(call);
  return out;
}

Tensor vlb(const Tensor& pred, const Optional& var_values, const Tensor& x0, const Optional& key,
           const Optional& noise, const Tensor& coefficients, const Optional& t, double x0_min,
           double x0_max, double vlb_scale, double simple_scale, bool detach_mean,
           int64_t reduction) {
  DiffusionArguments arguments("vlb", pred);
  Vlb call = vlb_call(arguments, pred, var_values, x0, {key, noise, coefficients, t}, x0_min,
                      x0_max, vlb_scale, simple_scale, detach_mean);
  const Tensor out = arguments.result(pred, call, reduction);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(diffusion).vlb(call);
  return out;
}

std::tuple<Tensor, Tensor> vlb_backward(const Tensor& grad, const Tensor& pred,
                                        const Optional& var_values, const Tensor& x0,
                                        const Optional& key, const Optional& noise,
                                        const Tensor& coefficients, const Optional& t,
                                        double x0_min, double x0_max, double vlb_scale,
                                        double simple_scale, bool detach_mean, int64_t reduction,
                                        int64_t output_mask) {
  DiffusionArguments arguments("vlb_backward", pred);
  Vlb call = vlb_call(arguments, pred, var_values, x0, {key, noise, coefficients, t}, x0_min,
                      x0_max, vlb_scale, simple_scale, detach_mean);
  arguments.upstream_of(grad, call, reduction);
  Tensor grad_pred = arguments.gradient(pred, pred, output_mask, 0, call.grad_pred);
  Tensor grad_values = arguments.gradient(var_values, pred, output_mask, 1, call.grad_var_values);
  if (pred.numel()) GENKERN_KERNELS(diffusion).vlb_backward(call);
  return {grad_pred, grad_values};
}

}  // namespace genkern
