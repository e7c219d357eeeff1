// The GAN family on CUDA devices: from tensors to the kernels of gan.cuh.
#include "cuda/gan.cuh"
#include "cuda/operands.cuh"

namespace genkern::cuda {
namespace {

// ---- functions of logits

GanKind kind_of(const char* op, int64_t kind) {
  STD_TORCH_CHECK(kind >= 0 && kind <= static_cast<int64_t>(GanKind::kRelativistic), op,
                  ": expected a kind from 0 to 5, got ", kind);
  return static_cast<GanKind>(kind);
}

// A term of x and, of the same form, one of y; or one of x - y.
struct LogitTerms {
  LogitTerm x, y{};
  bool difference = false;

  // `grad_factor`: of the derivatives.
  template <class Acc>
  Terms<Acc> terms(Acc, double grad_factor) const {
    return {x.form, difference, numbers<Acc>(x, grad_factor), numbers<Acc>(y, grad_factor)};
  }

 private:
  template <class Acc>
  static TermNumbers<Acc> numbers(const LogitTerm& term, double grad_factor) {
    return {static_cast<Acc>(term.sign), static_cast<Acc>(term.factor),
            static_cast<Acc>(term.factor * term.sign * grad_factor),
            static_cast<Acc>(term.smoothing)};
  }
};

LogitTerms discriminator_terms(const char* op, int64_t kind, double label_smoothing) {
  const GanKind which = kind_of(op, kind);
  return {discriminator_real(which, label_smoothing), discriminator_fake(which),
          which == GanKind::kRelativistic};
}

LogitTerms generator_terms(const char* op, int64_t kind, const OptionalTensor& real_logits) {
  const GanKind which = kind_of(op, kind);
  const bool difference = which == GanKind::kRelativistic;
  STD_TORCH_CHECK(!difference || real_logits, op, ": the relativistic loss needs real_logits");
  return {generator_term(which), {}, difference};
}

// The other logits of a generator's loss, which most kinds do not read.
OptionalTensor other(const LogitTerms& terms, const OptionalTensor& real_logits) {
  return terms.difference ? real_logits : OptionalTensor{};
}

constexpr LogitTerms kOptimal = {{LogitForm::kProbability, 1.0, 1.0, 0.0}, {}, true};

bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

// The value; where the mask asks for them, the gradients of x and y. `before`: a value to add to.
std::tuple<Tensor, Tensor, Tensor> logits(const char* op, const Tensor& x, const OptionalTensor& y,
                                          const LogitTerms& terms, int64_t reduction, int64_t mask,
                                          const OptionalTensor& before = {}) {
  Tensor value, grad_x, grad_y;
  dispatch(x.scalar_type(), op, [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = Logits<Acc>;
    Planner<Body::kTensors> planner(x.sizes());
    planner.input(Body::kX, x);
    optional_input(planner, Body::kY, y);
    value = reduced_output(planner, Body::kValue, x, reduction);
    if (before) {
      value = *before;
      planner.plan.result = value.mutable_data_ptr();
      planner.plan.adds = true;
    }
    grad_x = gradient(planner, Body::kGradX, x, x, mask, 0);
    grad_y = gradient(planner, Body::kGradY, y, x, mask, 1);
    launch<T>(planner, Body{terms.terms(Acc{}, 1 / divisor(planner, reduction))}, x, {});
  });
  return {value, grad_x, grad_y};
}

std::tuple<Tensor, Tensor> logits_backward(const char* op, const Tensor& grad, const Tensor& x,
                                           const OptionalTensor& y, const LogitTerms& terms,
                                           int64_t reduction, int64_t mask) {
  Tensor grad_x, grad_y;
  dispatch(x.scalar_type(), op, [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = LogitsBackward<Acc>;
    Planner<Body::kTensors> planner(x.sizes());
    upstream(planner, Body::kGrad, grad, reduction);
    if (terms.difference || mask & 1) planner.input(Body::kX, x);
    if (terms.difference || mask & 2) optional_input(planner, Body::kY, y);
    grad_x = gradient(planner, Body::kGradX, x, x, mask, 0);
    grad_y = gradient(planner, Body::kGradY, y, x, mask, 1);
    const auto factor = static_cast<Acc>(1 / divisor(planner, reduction));
    launch<T>(planner, Body{terms.terms(Acc{}, 1), factor}, x, {false, reduction == kSample});
  });
  return {grad_x, grad_y};
}

std::tuple<Tensor, Tensor, Tensor> discriminator(const char* op, const Tensor& real_logits,
                                                 const Tensor& fake_logits, int64_t kind,
                                                 double label_smoothing, int64_t reduction,
                                                 int64_t mask) {
  const torch::stable::accelerator::DeviceGuard guard(real_logits.get_device_index());
  const LogitTerms terms = discriminator_terms(op, kind, label_smoothing);
  if (same_shape(real_logits, fake_logits))
    return logits(op, real_logits, fake_logits, terms, reduction, mask);
  // Each with its own mean.
  const auto [value, grad_real, no_y] = logits(op, real_logits, {}, {terms.x}, reduction, mask);
  const auto [sum, grad_fake, neither] =
      logits(op, fake_logits, {}, {terms.y}, reduction, mask >> 1, value);
  return {sum, grad_real, grad_fake};
}

// ---- penalties

// Calls f with a value of the storage type, and one of the type of a penalty: unreduced ones have
// the gradients' type.
template <class F>
void dispatch_penalty(const Tensor& grads, const char* op, int64_t reduction, F f) {
  dispatch(grads.scalar_type(), op, [&](auto storage) {
    using Acc = typename Arithmetic<decltype(storage)>::type;
    if (reduction == kNone) {
      f(storage, storage);
    } else {
      f(storage, Acc{});
    }
  });
}

bool each(int64_t reduction) { return reduction == kNone || reduction == kSample; }

// Writes the penalty to `out`; or, given its upstream gradient `grad`, the gradient of `grad` to
// `out` and that of grads to `grad_grads`. What is null is not asked for.
template <class T, class Value>
void penalise(const Tensor& grads, const Tensor* grad_out, const Tensor* grad, double center,
              double weight, int64_t reduction, Tensor* out, Tensor* grad_grads) {
  using Acc = typename Arithmetic<T>::type;
  const int64_t samples = grads.size(0);
  const cudaStream_t stream = current_stream(grads.get_device_index());
  PenaltyRows<Acc> rows{};
  rows.samples = samples;
  rows.center = center;
  rows.weight = weight;
  rows.divisor = reduction == kMean || reduction == kBatchMean ? static_cast<double>(samples) : 1;
  rows.along = grad_out != nullptr;
  rows.reduce = !each(reduction);

  Tensor partials, coefficients;
  if ((center != 0 || out) && samples > 0) {
    Planner<PenaltyTensors::kTensors> planner(grads.sizes());
    planner.input(PenaltyTensors::kGrads, grads);
    if (grad_out) planner.input(PenaltyTensors::kGradOut, *grad_out);
    const Walk walk = planner.build(false, true, true, kPackLanes<T>, kBlockElements<Acc>);
    planner.plan.result_by_sample = true;
    const Grid grid(planner.plan, true, true);
    rows.blocks = grid.blocks_a_result;
    const int64_t size[] = {samples * rows.blocks, sizeof(PenaltySums) / sizeof(double)};
    partials = torch::stable::new_empty(grads, size, ScalarType::Double);
    const PenaltyTensors body{static_cast<PenaltySums*>(partials.mutable_data_ptr())};
    rows.partials = body.partials;
    with_walk(walk, [&](auto kind) {
      start(sum_squares<PenaltyTensors, T, kind.value>, grid.blocks, grid.threads, stream,
            planner.plan, body);
    });
  }
  if (grad) {
    const int64_t size[] = {3 * samples};
    coefficients = torch::stable::new_empty(grads, size, reduced_type(grads));
    rows.coefficients = static_cast<PenaltyCoefficients<Acc>*>(coefficients.mutable_data_ptr());
    rows.grad = grad->const_data_ptr();
    rows.grad_stride = grad->dim() > 0 ? grad->stride(0) : 0;
  }
  if (out) rows.out = out->mutable_data_ptr();
  if (samples > 0 || rows.reduce) {
    dim3 threads(1);
    while (threads.x < 32 && threads.x < rows.blocks) threads.x *= 2;
    threads.y = kThreads / threads.x;
    const unsigned blocks = rows.reduce && out ? 1 : std::max(ceil_divide(samples, threads.y), 1u);
    start(solve_penalty<Acc, Value>, blocks, threads, stream, rows);
  }
  if (!grad_grads) return;
  using Body = ScaleSamples<Acc>;
  Planner<Body::kTensors> planner(grads.sizes());
  if (!grad_out || center != 0) planner.input(Body::kGrads, grads);
  if (grad_out) planner.input(Body::kGradOut, *grad_out);
  planner.output(Body::kOut, *grad_grads);
  launch<T>(planner, Body{rows.coefficients}, grads, {false, true});
}

// ---- points between real and generated data

template <class T>
Weights<T> make_weights(const OptionalTensor& key, const OptionalTensor& noise) {
  if (noise)
    return {static_cast<const T*>(noise->const_data_ptr()), noise->stride(0), nullptr, 0, 0, false};
  const bool own = key->dim() > 1;
  return {nullptr,
          0,
          static_cast<const uint64_t*>(key->const_data_ptr()),
          own ? key->stride(0) : 0,
          key->stride(-1),
          own};
}

}  // namespace

Tensor discriminator_loss(Tensor real_logits, Tensor fake_logits, int64_t kind,
                          double label_smoothing, int64_t reduction) {
  return std::get<0>(discriminator("discriminator_loss", real_logits, fake_logits, kind,
                                   label_smoothing, reduction, 0));
}

std::tuple<Tensor, Tensor, Tensor> discriminator_loss_forming(Tensor real_logits,
                                                              Tensor fake_logits, int64_t kind,
                                                              double label_smoothing,
                                                              int64_t reduction) {
  return discriminator("discriminator_loss_forming", real_logits, fake_logits, kind,
                       label_smoothing, reduction, 0b11);
}

std::tuple<Tensor, Tensor> discriminator_loss_backward(Tensor grad, Tensor real_logits,
                                                       Tensor fake_logits, int64_t kind,
                                                       double label_smoothing, int64_t reduction,
                                                       int64_t output_mask) {
  const char* const op = "discriminator_loss_backward";
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const LogitTerms terms = discriminator_terms(op, kind, label_smoothing);
  if (same_shape(real_logits, fake_logits))
    return logits_backward(op, grad, real_logits, fake_logits, terms, reduction, output_mask);
  const auto by_real =
      logits_backward(op, grad, real_logits, {}, {terms.x}, reduction, output_mask & 1);
  const auto by_fake =
      logits_backward(op, grad, fake_logits, {}, {terms.y}, reduction, output_mask >> 1);
  return {std::get<0>(by_real), std::get<0>(by_fake)};
}

Tensor generator_loss(Tensor fake_logits, OptionalTensor real_logits, int64_t kind,
                      int64_t reduction) {
  const char* const op = "generator_loss";
  const torch::stable::accelerator::DeviceGuard guard(fake_logits.get_device_index());
  const LogitTerms terms = generator_terms(op, kind, real_logits);
  return std::get<0>(logits(op, fake_logits, other(terms, real_logits), terms, reduction, 0));
}

std::tuple<Tensor, Tensor, Tensor> generator_loss_forming(Tensor fake_logits,
                                                          OptionalTensor real_logits, int64_t kind,
                                                          int64_t reduction) {
  const char* const op = "generator_loss_forming";
  const torch::stable::accelerator::DeviceGuard guard(fake_logits.get_device_index());
  const LogitTerms terms = generator_terms(op, kind, real_logits);
  return logits(op, fake_logits, other(terms, real_logits), terms, reduction, 0b11);
}

std::tuple<Tensor, Tensor> generator_loss_backward(Tensor grad, Tensor fake_logits,
                                                   OptionalTensor real_logits, int64_t kind,
                                                   int64_t reduction, int64_t output_mask) {
  const char* const op = "generator_loss_backward";
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const LogitTerms terms = generator_terms(op, kind, real_logits);
  return logits_backward(op, grad, fake_logits, other(terms, real_logits), terms, reduction,
                         output_mask);
}

Tensor gradient_penalty(Tensor grads, double center, double weight, int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  std::vector<int64_t> shape;
  if (each(reduction)) shape.push_back(grads.size(0));
  Tensor out = torch::stable::new_empty(
      grads, shape, reduction == kNone ? grads.scalar_type() : reduced_type(grads));
  dispatch_penalty(grads, "gradient_penalty", reduction, [&](auto storage, auto value) {
    penalise<decltype(storage), decltype(value)>(grads, nullptr, nullptr, center, weight, reduction,
                                                 &out, nullptr);
  });
  return out;
}

Tensor gradient_penalty_backward(Tensor grad, Tensor grads, double center, double weight,
                                 int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  Tensor out = torch::stable::empty_like(grads);
  dispatch_penalty(grads, "gradient_penalty_backward", reduction, [&](auto storage, auto value) {
    penalise<decltype(storage), decltype(value)>(grads, nullptr, &grad, center, weight, reduction,
                                                 nullptr, &out);
  });
  return out;
}

std::tuple<Tensor, Tensor> gradient_penalty_backward_backward(Tensor grad_out, Tensor grad,
                                                              Tensor grads, double center,
                                                              double weight, int64_t reduction,
                                                              int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  const int64_t empty[] = {0};
  const bool by_grad = output_mask & 1, by_grads = output_mask & 2;
  Tensor grad_grad =
      by_grad ? torch::stable::empty_like(grad) : torch::stable::new_empty(grads, empty);
  Tensor out = by_grads ? torch::stable::empty_like(grads) : torch::stable::new_empty(grads, empty);
  dispatch_penalty(
      grads, "gradient_penalty_backward_backward", reduction, [&](auto storage, auto value) {
        penalise<decltype(storage), decltype(value)>(grads, &grad_out, &grad, center, weight,
                                                     reduction, by_grad ? &grad_grad : nullptr,
                                                     by_grads ? &out : nullptr);
      });
  return {grad_grad, out};
}

Tensor interpolate(Tensor real, Tensor fake, OptionalTensor key, OptionalTensor noise) {
  const torch::stable::accelerator::DeviceGuard guard(real.get_device_index());
  Tensor out = torch::stable::empty_like(real);
  dispatch(real.scalar_type(), "interpolate", [&](auto storage) {
    using T = decltype(storage);
    using Body = Interpolate<T>;
    Planner<Body::kTensors> planner(real.sizes());
    planner.input(Body::kReal, real);
    planner.input(Body::kFake, fake);
    planner.output(Body::kMixed, out);
    launch<T>(planner, Body{make_weights<T>(key, noise)}, real, {false, true});
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> interpolate_backward(Tensor grad, Tensor real, Tensor fake,
                                                        OptionalTensor key, OptionalTensor noise,
                                                        int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(real.get_device_index());
  const int64_t empty[] = {0};
  Tensor grad_real, grad_fake, grad_noise = torch::stable::new_empty(real, empty);
  dispatch(real.scalar_type(), "interpolate_backward", [&](auto storage) {
    using T = decltype(storage);
    using Body = InterpolateBackward<T>;
    Planner<Body::kTensors> planner(real.sizes());
    planner.input(Body::kGrad, grad);
    const bool by_noise = noise && output_mask & 4;
    if (by_noise) {
      planner.input(Body::kReal, real);
      planner.input(Body::kFake, fake);
      grad_noise = reduced_output(planner, Body::kTensors, real, kSample);
    }
    grad_real = gradient(planner, Body::kGradReal, real, real, output_mask, 0);
    grad_fake = gradient(planner, Body::kGradFake, fake, real, output_mask, 1);
    launch<T>(planner, Body{make_weights<T>(key, noise)}, real, {false, true});
    if (by_noise) grad_noise = torch::stable::to(grad_noise, real.scalar_type());
  });
  return {grad_real, grad_fake, grad_noise};
}

Tensor optimal_discriminator(Tensor log_p, Tensor log_q) {
  const torch::stable::accelerator::DeviceGuard guard(log_p.get_device_index());
  return std::get<0>(logits("optimal_discriminator", log_p, log_q, kOptimal, kNone, 0));
}

std::tuple<Tensor, Tensor> optimal_discriminator_backward(Tensor grad, Tensor log_p, Tensor log_q,
                                                          int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(log_p.get_device_index());
  return logits_backward("optimal_discriminator_backward", grad, log_p, log_q, kOptimal, kNone,
                         output_mask);
}

}  // namespace genkern::cuda
