// What the kernels of every family share: threads, storage types, noise, sums in a fixed order.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "cpu/iterate.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"

namespace genkern::GENKERN_CAPABILITY {
namespace {

// Least work for a thread, in elements: a parallel region costs microseconds.
constexpr int64_t kGrain = 16384;
constexpr int64_t kNoiseGrain = 4096;

// Outputs of this size and more do not fit the caches, and bypass them.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Ends the parallel body of a kernel: calls f(begin, end) on ranges of units.
template <class F>
void parallel(Parallel run, int64_t units, int64_t grain, const F& f) {
  run(
      units, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
        stream_fence();
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Calls f.template operator()<S>() with the storage type.
template <class F>
void visit(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f(float());
    case Type::kDouble:
      return f(double());
    case Type::kBFloat16:
      return f(BFloat16());
    case Type::kHalf:
      return f(Half());
  }
}

// Not inlined: long, and called once a chunk from every variant of every kernel.
template <class T>
__attribute__((noinline)) void fill_normal(Key key, uint64_t first, int64_t n, T* out,
                                           Ahead& ahead) {
  fill<Normal>(key, first, n, out, ahead);
}
template <class T>
__attribute__((noinline)) void fill_uniform(Key key, uint64_t first, int64_t n, T* out,
                                            Ahead& ahead) {
  fill<Uniform>(key, first, n, out, ahead);
}

// Noise of elements start .. start + n - 1 of the logical shape, for one of `draws` draws.
template <class T>
void fill_noise(const Keys& keys, int64_t samples, int64_t size, int64_t draw, int64_t start,
                int64_t n, T* out, Ahead ahead) {
  if (!keys.per_sample) {
    fill_normal(*keys.data, static_cast<uint64_t>(draw * size + start), n, out, ahead);
    return;
  }
  const int64_t length = size / samples;
  while (n > 0) {
    const int64_t sample = start / length, within = start % length;
    const int64_t run = length - within < n ? length - within : n;
    fill_normal(keys.data[sample], static_cast<uint64_t>(draw * length + within), run, out, ahead);
    start += run;
    out += run;
    n -= run;
  }
}

// The tensors of a call that are there, by their number; outputs from `first_output` on. Samples
// are kept apart where they are summed apart.
template <class S, int kCount>
class Tensors {
 public:
  Tensors(const Call& call, const View* const (&views)[kCount], bool reorder, int first_output)
      : dims_(call.shape, present_, select(views), reorder, whole_samples(call)) {
    const bool streaming = total(call.shape) * static_cast<int64_t>(sizeof(S)) >= kStreamBytes;
    int index = 0;
    for (int v = 0; v < kCount; ++v) {
      if (!is_present(*views[v])) continue;
      access_[v] = Access<S>(*views[v], dims_, index++, streaming && v >= first_output);
    }
  }
  // An access points to dims_.
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  const Access<S>& operator[](int v) const { return access_[v]; }

 private:
  static bool is_present(const View& view) { return view.data && view.strides; }
  static int whole_samples(const Call& call) {
    const bool apart = call.by_sample || call.reduction == Reduction::kSample;
    return apart && call.shape.dims > 0 && call.shape.sizes[0] != 1 ? 1 : 0;
  }
  int select(const View* const (&views)[kCount]) {
    int count = 0;
    for (int v = 0; v < kCount; ++v) {
      if (is_present(*views[v])) present_[count++] = views[v];
    }
    return count;
  }

  const View* present_[kCount];
  Dims dims_;
  Access<S> access_[kCount];
};

template <class T>
T sum(const T* __restrict x, int64_t n) {
  // Fixed lanes, then a tree: vectorises, and the rounding error grows with n / 64 at most.
  constexpr int kLanes = 64;
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  for (int j = 0; i + j < n; ++j) lanes[j] += x[i + j];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

// In pairs: the rounding error grows with the logarithm of n, which counts for float64.
inline double tree_sum(const double* x, int64_t n) {
  if (n <= 2) return n == 2 ? x[0] + x[1] : n == 1 ? x[0] : 0.0;
  return tree_sum(x, n / 2) + tree_sum(x + n / 2, n - n / 2);
}

// Calls f(begin, end) on ranges of units, on torch's threads.
template <class F>
void for_units(const Call& call, const Cut& cut, int64_t grain, const F& f) {
  const int64_t per_unit = cut.chunks > 1 ? kChunk : cut.group * cut.length;
  parallel(call.parallel, cut.units(), grain / (per_unit + 1) + 1,
           [&](int64_t begin, int64_t end) { f(begin, end); });
}

// Elements of a unit: a chunk of a segment, or a few whole segments.
struct Unit {
  int64_t start, n, partial, segments;
  Unit(const Cut& cut, int64_t index) {
    if (cut.chunks > 1) {
      const int64_t offset = index % cut.chunks * kChunk;
      start = index / cut.chunks * cut.length + offset;
      n = cut.length - offset < kChunk ? cut.length - offset : kChunk;
      partial = index;
      segments = 1;
    } else {
      partial = index * cut.group;
      segments = cut.segments - partial < cut.group ? cut.segments - partial : cut.group;
      start = partial * cut.length;
      n = segments * cut.length;
    }
  }
};

// Whether a unit of each of these tensors that is there is a row of 16-bit numbers in memory, which
// are converted on the way: buffers cost twice the loads and stores.
template <class S, int N>
bool in_rows(const Tensors<S, N>& a, const Unit& unit, std::initializer_list<int> tensors) {
  if (kVectors == 1 || sizeof(S) != 2) return false;
  for (int tensor : tensors) {
    if (a[tensor] && !a[tensor].row(unit.start, unit.n)) return false;
  }
  return true;
}

// A unit's lines, if it is written past the caches. A segment that is not its first may begin
// within a line.
template <class S>
Streamed* lines(const Access<S>& access, const Unit& unit, int64_t draw = 0) {
  if (kVectors == 1 || !std::is_same_v<S, float> || unit.segments > 1) return nullptr;
  return reinterpret_cast<Streamed*>(access.lines(unit.start, unit.n, draw));
}

// Calls f(where to write a unit), once, and brings it to its place.
template <class S, class T, class F>
void put(const Access<S>& access, const Unit& unit, T* buffer, const F& f, int64_t draw = 0) {
  if constexpr (std::is_same_v<S, float>) {
    if (Streamed* out = lines(access, unit, draw)) return f(out);
  }
  T* out = access.target(unit.start, unit.n, buffer, draw);
  f(out);
  access.write(unit.start, unit.n, out, buffer, draw);
}

// The partial sums of a unit's values.
template <class T>
void partial_sums(const Cut& cut, const Unit& unit, const T* values, double* partials) {
  if (cut.chunks > 1) {
    partials[unit.partial] = static_cast<double>(sum(values, unit.n));
    return;
  }
  for (int64_t s = 0; s < unit.segments; ++s) {
    partials[unit.partial + s] = static_cast<double>(sum(values + s * cut.length, cut.length));
  }
}

// What a sum is divided by.
inline double divisor(const Call& call) {
  if (call.reduction == Reduction::kMean) return static_cast<double>(total(call.shape));
  if (call.reduction == Reduction::kBatchMean) return static_cast<double>(call.shape.samples);
  return 1.0;
}

template <class T>
void finish(const Call& call, const Cut& cut, T* out) {
  const bool apart = call.reduction == Reduction::kSample;
  const int64_t values = apart ? cut.segments : 1, each = cut.partials() / (values ? values : 1);
  for (int64_t s = 0; s < values; ++s) {
    out[s] = static_cast<T>(tree_sum(call.partials + s * each, each) / divisor(call));
  }
}

// What a kernel is asked to do with an empty tensor: sums are 0, means 0 / 0.
inline bool empty(const Call& call, void* out) {
  const int64_t size = total(call.shape);
  if (size != 0) return false;
  if (out != nullptr && call.reduction != Reduction::kNone) {
    const Cut cut = cut_of(call);
    if (call.type == Type::kDouble) {
      finish(call, cut, static_cast<double*>(out));
    } else {
      finish(call, cut, static_cast<float*>(out));
    }
  }
  return true;
}

}  // namespace
}  // namespace genkern::GENKERN_CAPABILITY
