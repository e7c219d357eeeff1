// The GAN family, for one instruction set: GENKERN_CAPABILITY is its namespace.
#include "genkern/gan.h"

#include <type_traits>

#include "cpu/driver.h"

namespace genkern::GENKERN_CAPABILITY {
namespace {

// ---- functions of logits

// A term's numbers. A loop gets a copy: what it writes might otherwise be the term itself, which
// would be read again in every step.
template <class T>
struct TermNumbers {
  explicit TermNumbers(const LogitTerm& term)
      : sign(static_cast<T>(term.sign)),
        factor(static_cast<T>(term.factor)),
        smoothing(static_cast<T>(term.smoothing)) {}
  template <LogitForm kForm, class V>
  GENKERN_HD OfLogit<V> at(V logit) const {
    return logit_term<kForm>(logit, V(sign), V(factor), V(smoothing));
  }
  T sign, factor, smoothing;
};

// What a term is of, and what becomes of its values.
enum class Term {
  kFirst,       // x
  kSecond,      // x; they are added to what is there
  kDifference,  // x - y, of the relativistic loss or D*
};

// Calls f with the form as a constant.
template <Term kTerm, class F>
void with_form(LogitForm form, const F& f) {
  using Form = LogitForm;
  if (form == Form::kLogistic) return f(std::integral_constant<Form, Form::kLogistic>());
  if (form == Form::kProbability) return f(std::integral_constant<Form, Form::kProbability>());
  if constexpr (kTerm != Term::kDifference) {
    if (form == Form::kHinge) return f(std::integral_constant<Form, Form::kHinge>());
    if (form == Form::kLinear) return f(std::integral_constant<Form, Form::kLinear>());
    if (form == Form::kSquare) return f(std::integral_constant<Form, Form::kSquare>());
  }
}

// The vectors that a loop works on at a time.
constexpr int chains(LogitForm form) {
  const bool elementary = form == LogitForm::kLogistic || form == LogitForm::kProbability;
  return elementary ? kManyVectors : kVectors;
}

// `y` and `negative`, the gradient of y, are a difference's.
template <Term kTerm, class V, class T>
GENKERN_HD V term_logit(const T* x, const T* y, int64_t i) {
  if constexpr (kTerm == Term::kDifference) return load_vector<V>(x + i) - load_vector<V>(y + i);
  return load_vector<V>(x + i);
}
template <Term kTerm, class V, class T>
GENKERN_HD void store_gradient(T* derivative, T* negative, int64_t i, V value) {
  store_vector(derivative + i, value);
  if constexpr (kTerm == Term::kDifference) store_vector(negative + i, -value);
}

// The values, and where kGradient is set the derivatives times `scale`.
template <Term kTerm, bool kGradient, class T>
void term_loop(const LogitTerm& term, double scale, int64_t n, const T* __restrict x,
               const T* __restrict y, T* __restrict out, T* __restrict derivative,
               T* __restrict negative) {
  const TermNumbers<T> c(term);
  const T by = static_cast<T>(scale);
  with_form<kTerm>(term.form, [=](auto form) {
    for_steps<T, chains(form())>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
      using V = typename decltype(number)::T;
      const auto f = c.template at<form()>(term_logit<kTerm, V>(x, y, i));
      store_vector(out + i, kTerm == Term::kSecond ? load_vector<V>(out + i) + f.value : f.value);
      if constexpr (kGradient) store_gradient<kTerm>(derivative, negative, i, V(by) * f.u);
    });
  });
}
template <Term kTerm, class T>
void term_values(const LogitTerm& term, double scale, int64_t n, const T* x, const T* y, T* out,
                 T* derivative, T* negative) {
  const auto loop = derivative ? term_loop<kTerm, true, T> : term_loop<kTerm, false, T>;
  loop(term, scale, n, x, y, out, derivative, negative);
}

template <Term kTerm, class T>
void term_gradients(const LogitTerm& term, double scale, int64_t n, const T* __restrict x,
                    const T* __restrict y, const T* __restrict grad, T* __restrict out,
                    T* __restrict negative) {
  const TermNumbers<T> c(term);
  const T by = static_cast<T>(scale);
  with_form<kTerm>(term.form, [=](auto form) {
    for_steps<T, chains(form())>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
      using V = typename decltype(number)::T;
      const V derivative = c.template at<form()>(term_logit<kTerm, V>(x, y, i)).u;
      store_gradient<kTerm>(out, negative, i, load_vector<V>(grad + i) * V(by) * derivative);
    });
  });
}

// What is written comes last.
enum LogitTensor { kX, kY, kLogitGrad, kValue, kGradX, kGradY, kLogitTensors };

template <class S>
Tensors<S, kLogitTensors> logit_tensors(const Logits& call) {
  return {
      call, {&call.x, &call.y, &call.grad, &call.value, &call.grad_x, &call.grad_y}, true, kValue};
}

void logits(const Logits& call) {
  if (empty(call, call.value.data)) return;
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = logit_tensors<S>(call);
    const Cut cut = cut_of(call);
    const bool reduce = call.reduction != Reduction::kNone;
    const double factor = 1.0 / divisor(call);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) T x_[kChunk], y_[kChunk], out_[kChunk], grad_x_[kChunk], grad_y_[kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        const int64_t start = unit.start, n = unit.n;
        T* out = reduce ? out_ : a[kValue].target(start, n, out_);
        T* grad_x = a[kGradX] ? a[kGradX].target(start, n, grad_x_) : nullptr;
        T* grad_y = a[kGradY] ? a[kGradY].target(start, n, grad_y_) : nullptr;
        const T* x = a[kX].read(start, n, x_);
        const T* y = a[kY] ? a[kY].read(start, n, y_) : nullptr;
        if (call.difference) {
          term_values<Term::kDifference>(call.x_term, factor, n, x, y, out, grad_x, grad_y);
        } else {
          term_values<Term::kFirst>(call.x_term, factor, n, x, y, out, grad_x, grad_y);
          if (y) term_values<Term::kSecond>(call.y_term, factor, n, y, x, out, grad_y, grad_x);
        }
        if (grad_x) a[kGradX].write(start, n, grad_x, grad_x_);
        if (grad_y) a[kGradY].write(start, n, grad_y, grad_y_);
        if (reduce) {
          partial_sums(cut, unit, out, call.partials);
        } else {
          a[kValue].write(start, n, out, out_);
        }
      }
    });
    if (reduce) finish(call, cut, static_cast<T*>(call.value.data));
  });
}

void logits_backward(const Logits& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = logit_tensors<S>(call);
    const Cut cut(total(call.shape), 1, Reduction::kNone);
    const double factor = 1.0 / divisor(call);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) T x_[kChunk], y_[kChunk], grad_[kChunk], grad_x_[kChunk], grad_y_[kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        const int64_t start = unit.start, n = unit.n;
        T* grad_x = a[kGradX] ? a[kGradX].target(start, n, grad_x_) : grad_x_;
        T* grad_y = a[kGradY] ? a[kGradY].target(start, n, grad_y_) : grad_y_;
        const T* grad = a[kLogitGrad].read(start, n, grad_);
        const T* x = a[kX].read(start, n, x_);
        const T* y = a[kY] ? a[kY].read(start, n, y_) : nullptr;
        const auto gradients = call.difference ? term_gradients<Term::kDifference, T>
                                               : term_gradients<Term::kFirst, T>;
        gradients(call.x_term, factor, n, x, y, grad, grad_x, grad_y);
        if (a[kGradX]) a[kGradX].write(start, n, grad_x, grad_x_);
        if (a[kGradY]) a[kGradY].write(start, n, grad_y, grad_y_);
      }
    });
  });
}

// ---- penalties

// Sums of g^2 and, where kProducts is set, of g v, in double and in an order that n alone fixes:
// fixed lanes, then a tree.
struct Sums {
  double squares, products;
};
template <bool kProducts, class T>
Sums sums(int64_t n, const T* __restrict g, const T* __restrict v) {
  constexpr int kLanes = 16;
  double squares[kLanes] = {}, products[kLanes] = {};
  const auto add = [&](int64_t i, int j) __attribute__((always_inline)) {
    const double x = static_cast<double>(g[i + j]);
    squares[j] += x * x;
    if constexpr (kProducts) products[j] += x * static_cast<double>(v[i + j]);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) add(i, j);
  }
  for (int j = 0; i + j < n; ++j) add(i, j);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) {
      squares[j] += squares[j + width];
      products[j] += products[j + width];
    }
  }
  return {squares[0], products[0]};
}

template <class T, class K>
void scale(int64_t n, K k, const T* __restrict x, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(k * x[i]);
}
// k x + l y; without l, y may be infinite.
template <class T, class K>
void combine(int64_t n, K k, const T* __restrict x, K l, const T* __restrict y, T* __restrict out) {
  if (l == K(0)) return scale(n, k, x, out);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(k * x[i] + l * y[i]);
}

// Row b's value.
template <class S>
double row_value(const View& view, int64_t b) {
  using T = typename Arithmetic<S>::T;
  const int64_t at = b * view.strides[0];
  return view.wide ? static_cast<double>(static_cast<const T*>(view.data)[at])
                   : static_cast<double>(load(static_cast<const S*>(view.data)[at]));
}

// Writes the rows' values, or what they are reduced to.
template <class S>
void write_rows(const Call& call, const double* values, void* out) {
  using T = typename Arithmetic<S>::T;
  const int64_t n = call.shape.samples;
  if (call.reduction == Reduction::kNone) {
    for (int64_t b = 0; b < n; ++b) store(static_cast<T>(values[b]), static_cast<S*>(out)[b]);
  } else if (call.reduction == Reduction::kSample) {
    for (int64_t b = 0; b < n; ++b) static_cast<T*>(out)[b] = static_cast<T>(values[b]);
  } else {
    const double sum = tree_sum(values, n);
    const bool mean = call.reduction != Reduction::kSum;
    *static_cast<T*>(out) = static_cast<T>(mean ? sum / static_cast<double>(n) : sum);
  }
}

enum PenaltyTensor { kGrads, kGradOut, kPenaltyOut, kPenaltyTensors };

template <class S>
Tensors<S, kPenaltyTensors> penalty_tensors(const GradientPenalty& call) {
  return {call, {&call.grads, &call.grad_out, &call.out}, true, kPenaltyOut};
}

template <class T>
struct PenaltyBuffers {
  alignas(64) T grads[kChunk], grad_out[kChunk], out[kChunk];
};

// The squares of a unit's gradients, and their products with grad_out where it is there.
template <class S, class T>
void measure(const GradientPenalty& call, const Tensors<S, kPenaltyTensors>& a, const Cut& cut,
             const Unit& unit, PenaltyBuffers<T>& buffers) {
  if (unit.n == 0) return;  // rows of no elements: the scratch is zeros
  const T* g = a[kGrads].read(unit.start, unit.n, buffers.grads);
  const T* v = a[kGradOut] ? a[kGradOut].read(unit.start, unit.n, buffers.grad_out) : nullptr;
  const int64_t length = cut.chunks > 1 ? unit.n : cut.length;
  for (int64_t s = 0; s < unit.segments; ++s) {
    const int64_t at = s * length;
    const Sums found =
        v ? sums<true>(length, g + at, v + at) : sums<false, T>(length, g + at, nullptr);
    call.partials[unit.partial + s] = found.squares;
    call.products[unit.partial + s] = found.products;
  }
}

// Row b's sum of partial sums.
double row_sum(const Cut& cut, const double* partials, int64_t b) {
  return tree_sum(partials + b * cut.chunks, cut.chunks);
}

// From the sums of row b to the coefficients of grad_out and grads in the result, and the upstream
// gradient's own gradient: rows[b], rows[samples + b] and rows[2 samples + b].
template <class S>
void solve(const GradientPenalty& call, const Cut& cut, int64_t b) {
  const int64_t n = call.shape.samples;
  const bool mean = call.reduction == Reduction::kMean || call.reduction == Reduction::kBatchMean;
  const double upstream = row_value<S>(call.grad, b) / (mean ? static_cast<double>(n) : 1.0);
  const Penalty p = penalty(row_sum(cut, call.partials, b), call.center, call.weight);
  call.rows[b] = upstream * p.slope;
  if (!call.grad_out.data) return;
  const double along = row_sum(cut, call.products, b);
  call.rows[n + b] = upstream * p.turned(along);
  call.rows[2 * n + b] = p.slope * along;
}

template <class S, class T>
void write_result(const GradientPenalty& call, const Tensors<S, kPenaltyTensors>& a, const Cut& cut,
                  const Unit& unit, PenaltyBuffers<T>& buffers) {
  if (!a[kPenaltyOut] || unit.n == 0) return;
  const T* g = a[kGrads].read(unit.start, unit.n, buffers.grads);
  const T* v = a[kGradOut] ? a[kGradOut].read(unit.start, unit.n, buffers.grad_out) : nullptr;
  T* out = a[kPenaltyOut].target(unit.start, unit.n, buffers.out);
  const int64_t length = cut.chunks > 1 ? unit.n : cut.length;
  for (int64_t s = 0; s < unit.segments; ++s) {
    const int64_t b = unit.partial / cut.chunks + s, at = s * length;
    const double k = call.rows[b], l = v ? call.rows[call.shape.samples + b] : 0.0;
    const T* const x = v ? v : g;
    if (holds<T>(k) && holds<T>(l)) {
      combine(length, static_cast<T>(k), x + at, static_cast<T>(l), g + at, out + at);
    } else {  // a norm near 1e-39, whose inverse float32 does not hold
      combine(length, coefficient<double>(k), x + at, coefficient<double>(l), g + at, out + at);
    }
  }
  a[kPenaltyOut].write(unit.start, unit.n, out, buffers.out);
}

// As many rows as this are shared among threads whole: a row is in the cache when it is read again.
constexpr int64_t kWholeRows = 8;

template <class S>
void penalty_gradients(const GradientPenalty& call) {
  using T = typename Arithmetic<S>::T;
  const auto a = penalty_tensors<S>(call);
  const Cut cut = cut_of(call);
  if (cut.chunks > 1 && cut.segments < kWholeRows) {
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      PenaltyBuffers<T> buffers;
      for (int64_t i = begin; i < end; ++i) measure(call, a, cut, Unit(cut, i), buffers);
    });
    for (int64_t b = 0; b < cut.segments; ++b) solve<S>(call, cut, b);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      PenaltyBuffers<T> buffers;
      for (int64_t i = begin; i < end; ++i) write_result(call, a, cut, Unit(cut, i), buffers);
    });
    return;
  }
  // Units of a row, or of a few rows.
  const int64_t blocks = cut.units() / cut.chunks;
  const int64_t elements = cut.group * cut.length;
  parallel(call.parallel, blocks, kGrain / (elements + 1) + 1, [&](int64_t begin, int64_t end) {
    PenaltyBuffers<T> buffers;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * cut.chunks, last = first + cut.chunks;
      for (int64_t i = first; i < last; ++i) measure(call, a, cut, Unit(cut, i), buffers);
      const Unit unit(cut, first);
      for (int64_t s = 0; s < unit.segments; ++s) {
        solve<S>(call, cut, unit.partial / cut.chunks + s);
      }
      for (int64_t i = first; i < last; ++i) write_result(call, a, cut, Unit(cut, i), buffers);
    }
  });
}

void gradient_penalty(const GradientPenalty& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = penalty_tensors<S>(call);
    const Cut cut = cut_of(call);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      PenaltyBuffers<T> buffers;
      for (int64_t i = begin; i < end; ++i) measure(call, a, cut, Unit(cut, i), buffers);
    });
    for (int64_t b = 0; b < cut.segments; ++b) {
      call.rows[b] = penalty(row_sum(cut, call.partials, b), call.center, call.weight).value;
    }
    write_rows<S>(call, call.rows, call.penalty.data);
  });
}

void gradient_penalty_backward(const GradientPenalty& call) {
  visit(call.type, [&](auto storage) { penalty_gradients<decltype(storage)>(call); });
}

void gradient_penalty_backward_backward(const GradientPenalty& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    penalty_gradients<S>(call);
    if (call.grad_grad.data) {
      write_rows<S>(call, call.rows + 2 * call.shape.samples, call.grad_grad.data);
    }
  });
}

// ---- points between real and generated data

enum InterpolationTensor { kReal, kFake, kMixGrad, kMixed, kGradReal, kGradFake, kMixTensors };

template <class S>
Tensors<S, kMixTensors> interpolation_tensors(const Interpolation& call) {
  return {call,
          {&call.real, &call.fake, &call.grad, &call.mixed, &call.grad_real, &call.grad_fake},
          true,
          kMixed};
}

template <class T>
void mix(int64_t n, T w, const T* __restrict real, const T* __restrict fake, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = interpolate(real[i], fake[i], w);
}

// The weight of each of a unit's rows, with where it starts and how long it is.
template <class S, class F>
void each_row(const Interpolation& call, const Cut& cut, const Unit& unit, const F& f) {
  using T = typename Arithmetic<S>::T;
  const int64_t length = cut.chunks > 1 ? unit.n : cut.length;
  for (int64_t s = 0; s < unit.segments; ++s) {
    const int64_t b = unit.partial / cut.chunks + s;
    f(static_cast<T>(row_value<S>(call.weights, b)), s * length, length);
  }
}

void interpolation(const Interpolation& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = interpolation_tensors<S>(call);
    const Cut cut = cut_of(call);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) T real_[kChunk], fake_[kChunk], out_[kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        const T* real = a[kReal].read(unit.start, unit.n, real_);
        const T* fake = a[kFake].read(unit.start, unit.n, fake_);
        T* out = a[kMixed].target(unit.start, unit.n, out_);
        each_row<S>(call, cut, unit,
                    [&](T w, int64_t at, int64_t n) { mix(n, w, real + at, fake + at, out + at); });
        a[kMixed].write(unit.start, unit.n, out, out_);
      }
    });
  });
}

void interpolation_backward(const Interpolation& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = interpolation_tensors<S>(call);
    const Cut cut = cut_of(call);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) T real_[kChunk], fake_[kChunk], grad_[kChunk], out_[kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        if (unit.n == 0) continue;  // the scratch is zeros
        const T* grad = a[kMixGrad].read(unit.start, unit.n, grad_);
        for (int v : {kGradReal, kGradFake}) {
          if (!a[v]) continue;
          T* out = a[v].target(unit.start, unit.n, out_);
          each_row<S>(call, cut, unit, [&](T w, int64_t at, int64_t n) {
            scale(n, v == kGradReal ? w : T(1) - w, grad + at, out + at);
          });
          a[v].write(unit.start, unit.n, out, out_);
        }
        if (call.grad_weights.data) {
          const T* real = a[kReal].read(unit.start, unit.n, real_);
          const T* fake = a[kFake].read(unit.start, unit.n, fake_);
          for (int64_t i = 0; i < unit.n; ++i) out_[i] = grad[i] * (real[i] - fake[i]);
          partial_sums(cut, unit, out_, call.partials);
        }
      }
    });
    if (!call.grad_weights.data) return;
    for (int64_t b = 0; b < cut.segments; ++b) {
      store(static_cast<T>(row_sum(cut, call.partials, b)),
            static_cast<S*>(call.grad_weights.data)[b]);
    }
  });
}

}  // namespace

const GanKernels& gan_kernels() {
  static const GanKernels table = {logits,
                                   logits_backward,
                                   gradient_penalty,
                                   gradient_penalty_backward,
                                   gradient_penalty_backward_backward,
                                   interpolation,
                                   interpolation_backward};
  return table;
}

}  // namespace genkern::GENKERN_CAPABILITY
