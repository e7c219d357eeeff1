#include "cpu/arguments.h"

namespace genkern {
namespace {

template <class C>
C call_of(const Arguments& arguments, int64_t reduction = 0) {
  C call{};
  call.type = arguments.type();
  call.shape = arguments.shape();
  call.reduction = arguments.reduction(reduction);
  call.parallel = parallel;
  return call;
}

// The gradient of `like` if output_mask asks for it, else an empty tensor.
Tensor gradient(const Arguments& arguments, const Tensor& like, int64_t output_mask, int bit,
                View& view) {
  if (!(output_mask >> bit & 1)) return new_tensor({0}, like.scalar_type());
  const Tensor grad = new_like(like);
  view = arguments.view(grad);
  return grad;
}

// ---- functions of logits

GanKind kind_of(const char* function, int64_t kind) {
  STD_TORCH_CHECK(kind >= 0 && kind <= static_cast<int64_t>(GanKind::kRelativistic), function,
                  ": expected a kind from 0 to 5, got ", kind);
  return static_cast<GanKind>(kind);
}

bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

// The gradients that a loss forms with its value, of its first and its second argument.
struct Formed {
  std::optional<Tensor> x, y;
};

// A value an element, or reduced; with `formed`, the gradients of the call's tensors as well.
Tensor logits_value(Arguments& arguments, const Tensor& like, Logits& call, Formed* formed,
                    const Tensor& x, const Optional& y = {}) {
  call.x = arguments.view(x);
  call.y = arguments.view(y);
  const bool whole = call.reduction == Reduction::kNone;
  const Tensor out = whole ? new_like(like) : reduced(like, call.reduction);
  call.value = whole ? arguments.view(out) : View{out.data_ptr()};
  if (formed) {
    formed->x = new_like(x);
    call.grad_x = arguments.view(formed->x);
    if (y) formed->y = new_like(*y);
    call.grad_y = arguments.view(formed->y);
  }
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(gan).logits(call);
  return out;
}

// The value of one term.
Tensor term_value(const char* function, const Tensor& x, const LogitTerm& term, int64_t reduction,
                  Formed* formed = nullptr) {
  Arguments arguments(function, x);
  auto call = call_of<Logits>(arguments, reduction);
  call.x_term = term;
  return logits_value(arguments, x, call, formed, x);
}

// The gradient of one term.
Tensor term_gradient(const char* function, const Tensor& grad, const Tensor& x,
                     const LogitTerm& term, int64_t reduction, int64_t output_mask, int bit) {
  Arguments arguments(function, x);
  auto call = call_of<Logits>(arguments, reduction);
  const Tensor out = gradient(arguments, x, output_mask, bit, call.grad_x);
  if (!out.numel()) return out;
  call.x = arguments.view(x);
  call.x_term = term;
  call.grad = arguments.upstream(grad, call.reduction);
  GENKERN_KERNELS(gan).logits_backward(call);
  return out;
}

// A term of x - y.
Tensor difference_value(const char* function, const Tensor& x, const Tensor& y,
                        const LogitTerm& term, int64_t reduction, Formed* formed = nullptr) {
  Arguments arguments(function, x);
  auto call = call_of<Logits>(arguments, reduction);
  call.x_term = term;
  call.difference = true;
  return logits_value(arguments, x, call, formed, x, y);
}

std::tuple<Tensor, Tensor> difference_gradients(const char* function, const Tensor& grad,
                                                const Tensor& x, const Tensor& y,
                                                const LogitTerm& term, int64_t reduction,
                                                int64_t output_mask) {
  Arguments arguments(function, x);
  auto call = call_of<Logits>(arguments, reduction);
  call.x = arguments.view(x);
  call.y = arguments.view(y);
  call.x_term = term;
  call.difference = true;
  call.grad = arguments.upstream(grad, call.reduction);
  const Tensor grad_x = gradient(arguments, x, output_mask, 0, call.grad_x);
  const Tensor grad_y = gradient(arguments, y, output_mask, 1, call.grad_y);
  if (x.numel()) GENKERN_KERNELS(gan).logits_backward(call);
  return {grad_x, grad_y};
}

void add_scalar(const Tensor& x, const Tensor& out) {
  if (out.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(out.data_ptr()) += *static_cast<const double*>(x.data_ptr());
  } else {
    *static_cast<float*>(out.data_ptr()) += *static_cast<const float*>(x.data_ptr());
  }
}

Tensor discriminator(const char* function, const Tensor& real_logits, const Tensor& fake_logits,
                     int64_t kind, double label_smoothing, int64_t reduction, Formed* formed) {
  const GanKind which = kind_of(function, kind);
  const LogitTerm real = discriminator_real(which, label_smoothing);
  const LogitTerm fake = discriminator_fake(which);
  if (which == GanKind::kRelativistic) {
    return difference_value(function, real_logits, fake_logits, real, reduction, formed);
  }
  const Reduction how = reduction_of(function, reduction);
  const bool elements = how == Reduction::kNone || how == Reduction::kSample;
  if (elements || same_shape(real_logits, fake_logits)) {
    Arguments arguments(function, real_logits);
    auto call = call_of<Logits>(arguments, reduction);
    call.x_term = real;
    call.y_term = fake;
    return logits_value(arguments, real_logits, call, formed, real_logits, fake_logits);
  }
  STD_TORCH_CHECK(real_logits.scalar_type() == fake_logits.scalar_type(), function,
                  ": expected tensors of one dtype");
  Formed other;
  const Tensor out = term_value(function, real_logits, real, reduction, formed);
  add_scalar(term_value(function, fake_logits, fake, reduction, formed ? &other : nullptr), out);
  if (formed) formed->y = other.x;
  return out;
}

Tensor generator(const char* function, const Tensor& fake_logits, const Optional& real_logits,
                 int64_t kind, int64_t reduction, Formed* formed) {
  const GanKind which = kind_of(function, kind);
  const LogitTerm term = generator_term(which);
  if (which != GanKind::kRelativistic) {
    return term_value(function, fake_logits, term, reduction, formed);
  }
  STD_TORCH_CHECK(real_logits, function, ": the relativistic loss needs real_logits");
  return difference_value(function, fake_logits, *real_logits, term, reduction, formed);
}

constexpr LogitTerm kOptimal = {LogitForm::kProbability, 1.0, 1.0, 0.0};

// ---- penalties

// Values of rows, or what they are reduced to.
View rows_view(const char* function, const Tensor& x, const Tensor& grads, Reduction reduction) {
  static constexpr int64_t kOne = 0;
  const bool whole = reduction == Reduction::kNone;
  const bool each = whole || reduction == Reduction::kSample;
  const ScalarType dtype = whole ? grads.scalar_type() : arithmetic(grads.scalar_type());
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == dtype && x.dim() == (each ? 1 : 0) &&
                      (!each || x.size(0) == grads.size(0)),
                  function, ": the upstream gradient has the wrong shape, dtype or device");
  check_memory(function, x);
  return {x.data_ptr(), each ? x.strides().data() : &kOne, 0, !whole};
}

GradientPenalty penalty_call(const Arguments& arguments, const char* function, const Tensor& grads,
                             double center, double weight, int64_t reduction) {
  STD_TORCH_CHECK(grads.dim() > 0, function, ": expected grads with a batch dimension");
  auto call = call_of<GradientPenalty>(arguments, reduction);
  call.by_sample = true;
  call.grads = arguments.view(grads);
  call.center = center;
  call.weight = weight;
  return call;
}

// Scratch of a call, which lives as long.
std::vector<double> scratch_of(GradientPenalty& call) {
  const size_t partials = static_cast<size_t>(cut_of(call).partials());
  std::vector<double> scratch(2 * partials + 3 * static_cast<size_t>(call.shape.samples));
  call.partials = scratch.data();
  call.products = call.partials + partials;
  call.rows = call.products + partials;
  return scratch;
}

// ---- points between real and generated data

// The weights of the samples: given, or drawn in the arithmetic's type.
Tensor weights_of(const char* function, const Tensor& real, const Optional& key,
                  const Optional& noise) {
  STD_TORCH_CHECK(key.has_value() != noise.has_value(), function,
                  ": expected exactly one of key and noise");
  const int64_t batch = real.size(0);
  if (noise) {
    STD_TORCH_CHECK(noise->is_cpu() && noise->scalar_type() == real.scalar_type() &&
                        noise->dim() == 1 && noise->size(0) == batch,
                    function, ": expected noise of shape (", batch, ",)");
    check_memory(function, *noise);
    return *noise;
  }
  const ScalarType dtype = arithmetic(real.scalar_type());
  if (key->dim() != 2) return uniform(*key, {batch}, dtype);
  // Element 0 of each sample's stream.
  return uniform(*key, {batch, 1}, dtype);
}

Interpolation interpolation_call(const Arguments& arguments, const Tensor& weights, bool drawn) {
  auto call = call_of<Interpolation>(arguments);
  call.by_sample = true;
  call.weights = {weights.data_ptr(), weights.strides().data(), 0, drawn};
  return call;
}

}  // namespace

Tensor discriminator_loss(const Tensor& real_logits, const Tensor& fake_logits, int64_t kind,
                          double label_smoothing, int64_t reduction) {
  return discriminator("discriminator_loss", real_logits, fake_logits, kind, label_smoothing,
                       reduction, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> discriminator_loss_forming(const Tensor& real_logits,
                                                              const Tensor& fake_logits,
                                                              int64_t kind, double label_smoothing,
                                                              int64_t reduction) {
  Formed formed;
  Tensor value = discriminator("discriminator_loss_forming", real_logits, fake_logits, kind,
                               label_smoothing, reduction, &formed);
  return {value, *formed.x, *formed.y};
}

std::tuple<Tensor, Tensor> discriminator_loss_backward(const Tensor& grad,
                                                       const Tensor& real_logits,
                                                       const Tensor& fake_logits, int64_t kind,
                                                       double label_smoothing, int64_t reduction,
                                                       int64_t output_mask) {
  const char* const function = "discriminator_loss_backward";
  const GanKind which = kind_of(function, kind);
  const LogitTerm real = discriminator_real(which, label_smoothing);
  if (which == GanKind::kRelativistic) {
    return difference_gradients(function, grad, real_logits, fake_logits, real, reduction,
                                output_mask);
  }
  return {term_gradient(function, grad, real_logits, real, reduction, output_mask, 0),
          term_gradient(function, grad, fake_logits, discriminator_fake(which), reduction,
                        output_mask, 1)};
}

Tensor generator_loss(const Tensor& fake_logits, const Optional& real_logits, int64_t kind,
                      int64_t reduction) {
  return generator("generator_loss", fake_logits, real_logits, kind, reduction, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> generator_loss_forming(const Tensor& fake_logits,
                                                          const Optional& real_logits, int64_t kind,
                                                          int64_t reduction) {
  Formed formed;
  Tensor value =
      generator("generator_loss_forming", fake_logits, real_logits, kind, reduction, &formed);
  return {value, *formed.x, formed.y ? *formed.y : new_tensor({0}, fake_logits.scalar_type())};
}

std::tuple<Tensor, Tensor> generator_loss_backward(const Tensor& grad, const Tensor& fake_logits,
                                                   const Optional& real_logits, int64_t kind,
                                                   int64_t reduction, int64_t output_mask) {
  const char* const function = "generator_loss_backward";
  const GanKind which = kind_of(function, kind);
  const LogitTerm term = generator_term(which);
  if (which != GanKind::kRelativistic) {
    return {term_gradient(function, grad, fake_logits, term, reduction, output_mask, 0),
            new_tensor({0}, fake_logits.scalar_type())};
  }
  STD_TORCH_CHECK(real_logits, function, ": the relativistic loss needs real_logits");
  return difference_gradients(function, grad, fake_logits, *real_logits, term, reduction,
                              output_mask);
}

Tensor gradient_penalty(const Tensor& grads, double center, double weight, int64_t reduction) {
  Arguments arguments("gradient_penalty", grads);
  GradientPenalty call =
      penalty_call(arguments, "gradient_penalty", grads, center, weight, reduction);
  const bool each = call.reduction == Reduction::kNone || call.reduction == Reduction::kSample;
  const ScalarType dtype =
      call.reduction == Reduction::kNone ? grads.scalar_type() : arithmetic(grads.scalar_type());
  std::vector<int64_t> shape;
  if (each) shape.push_back(grads.size(0));
  const Tensor out = new_tensor(shape, dtype);
  call.penalty.data = out.data_ptr();
  const auto scratch = scratch_of(call);
  if (out.numel()) GENKERN_KERNELS(gan).penalty(call);
  return out;
}

Tensor gradient_penalty_backward(const Tensor& grad, const Tensor& grads, double center,
                                 double weight, int64_t reduction) {
  const char* const function = "gradient_penalty_backward";
  Arguments arguments(function, grads);
  GradientPenalty call = penalty_call(arguments, function, grads, center, weight, reduction);
  call.grad = rows_view(function, grad, grads, call.reduction);
  const Tensor out = new_like(grads);
  call.out = arguments.view(out);
  const auto scratch = scratch_of(call);
  if (out.numel()) GENKERN_KERNELS(gan).penalty_backward(call);
  return out;
}

std::tuple<Tensor, Tensor> gradient_penalty_backward_backward(const Tensor& grad_out,
                                                              const Tensor& grad,
                                                              const Tensor& grads, double center,
                                                              double weight, int64_t reduction,
                                                              int64_t output_mask) {
  const char* const function = "gradient_penalty_backward_backward";
  Arguments arguments(function, grads);
  GradientPenalty call = penalty_call(arguments, function, grads, center, weight, reduction);
  call.grad = rows_view(function, grad, grads, call.reduction);
  call.grad_out = arguments.view(grad_out);
  const bool wanted = output_mask & 1;
  const Tensor grad_grad = wanted ? new_like(grad) : new_tensor({0}, grads.scalar_type());
  if (wanted) call.grad_grad.data = grad_grad.data_ptr();
  const Tensor out = gradient(arguments, grads, output_mask, 1, call.out);
  const auto scratch = scratch_of(call);
  if (grad_grad.numel() || out.numel()) GENKERN_KERNELS(gan).penalty_backward_backward(call);
  return {grad_grad, out};
}

Tensor interpolate(const Tensor& real, const Tensor& fake, const Optional& key,
                   const Optional& noise) {
  const char* const function = "interpolate";
  STD_TORCH_CHECK(real.dim() > 0, function, ": expected tensors with a batch dimension");
  Arguments arguments(function, real);
  const Tensor weights = weights_of(function, real, key, noise);
  Interpolation call = interpolation_call(arguments, weights, !noise);
  call.real = arguments.view(real);
  call.fake = arguments.view(fake);
  const Tensor out = new_like(real);
  call.mixed = arguments.view(out);
  if (out.numel()) GENKERN_KERNELS(gan).interpolate(call);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> interpolate_backward(const Tensor& grad, const Tensor& real,
                                                        const Tensor& fake, const Optional& key,
                                                        const Optional& noise,
                                                        int64_t output_mask) {
  const char* const function = "interpolate_backward";
  STD_TORCH_CHECK(real.dim() > 0, function, ": expected tensors with a batch dimension");
  Arguments arguments(function, real);
  const Tensor weights = weights_of(function, real, key, noise);
  Interpolation call = interpolation_call(arguments, weights, !noise);
  call.grad = arguments.view(grad);
  const Tensor grad_real = gradient(arguments, real, output_mask, 0, call.grad_real);
  const Tensor grad_fake = gradient(arguments, fake, output_mask, 1, call.grad_fake);
  const bool wanted = noise && output_mask & 4;
  const Tensor grad_noise =
      wanted ? new_tensor({real.size(0)}, real.scalar_type()) : new_tensor({0}, real.scalar_type());
  std::vector<double> scratch;
  if (wanted) {
    call.real = arguments.view(real);
    call.fake = arguments.view(fake);
    call.grad_weights.data = grad_noise.data_ptr();
    scratch.resize(static_cast<size_t>(cut_of(call).partials()));
    call.partials = scratch.data();
  }
  if (real.numel() || grad_noise.numel()) GENKERN_KERNELS(gan).interpolate_backward(call);
  return {grad_real, grad_fake, grad_noise};
}

Tensor optimal_discriminator(const Tensor& log_p, const Tensor& log_q) {
  return difference_value("optimal_discriminator", log_p, log_q, kOptimal, 0);
}

std::tuple<Tensor, Tensor> optimal_discriminator_backward(const Tensor& grad, const Tensor& log_p,
                                                          const Tensor& log_q,
                                                          int64_t output_mask) {
  return difference_gradients("optimal_discriminator_backward", grad, log_p, log_q, kOptimal, 0,
                              output_mask);
}

}  // namespace genkern
