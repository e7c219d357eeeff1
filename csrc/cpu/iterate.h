// Chunks of tensors of any strides and storage type, as arrays of floats or doubles.
//
// A loop over a chunk sees contiguous arrays in the arithmetic's type. Where a tensor is stored
// like that, they are its own memory; otherwise they are buffers, filled before the loop and
// written back after it, while in the first-level cache.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/noise.h"

namespace genkern::GENKERN_CAPABILITY {

// Past the caches: the lines are not read before they are written. End with stream_fence().
static inline void stream(const void* from, void* to, int64_t bytes) {
#if defined(__SSE2__)
  const char* in = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  const int64_t head = -reinterpret_cast<intptr_t>(out) & 63;
  if (head < bytes) {
    std::memcpy(out, in, static_cast<size_t>(head));
    int64_t i = head;
#if defined(__AVX512F__)
    for (; i + 64 <= bytes; i += 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out + i), _mm512_loadu_si512(in + i));
    }
#elif defined(__AVX2__)
    for (; i + 32 <= bytes; i += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
    }
#else
    for (; i + 16 <= bytes; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
    }
#endif
    std::memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
    return;
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

static inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The dimensions of a call, those that all tensors let merge merged.
class Dims {
 public:
  static constexpr int kMaxViews = 16;

  // `reorder` allows the dimensions from `first` on to be visited in the order of memory, which
  // makes channels-last tensors contiguous. Of a dimension's strides the largest counts: that of an
  // expanded tensor is 0, and says nothing.
  Dims(const Shape& shape, const View* const* views, int count, bool reorder, int first) {
    int order[kMaxDims];
    int dims = 0;
    for (int d = 0; d < shape.dims; ++d) {
      if (shape.sizes[d] != 1) order[dims++] = d;
    }
    if (reorder) {
      int64_t largest[kMaxDims] = {};
      for (int i = 0; i < dims; ++i) {
        for (int v = 0; v < count; ++v) {
          const int64_t stride = views[v]->strides[order[i]];
          if (stride > largest[order[i]]) largest[order[i]] = stride;
        }
      }
      // Insertion sort, stable; few dimensions.
      for (int i = 1; i < dims; ++i) {
        for (int j = i; j > 0 && order[j - 1] >= first && largest[order[j - 1]] < largest[order[j]];
             --j) {
          const int swap = order[j];
          order[j] = order[j - 1];
          order[j - 1] = swap;
        }
      }
    }
    for (int i = 0; i < dims; ++i) {
      const int64_t size = shape.sizes[order[i]];
      bool merge = dims_ > 0;
      for (int v = 0; merge && v < count; ++v) {
        merge = strides_[v][dims_ - 1] == views[v]->strides[order[i]] * size;
      }
      if (!merge) sizes_[dims_++] = 1;
      sizes_[dims_ - 1] *= size;
      for (int v = 0; v < count; ++v) strides_[v][dims_ - 1] = views[v]->strides[order[i]];
    }
    if (dims_ == 0) {
      sizes_[dims_++] = 1;
      for (int v = 0; v < count; ++v) strides_[v][0] = 1;
    }
  }

  // Calls f(offset in the view, position in the chunk, length, stride) for each run of elements of
  // one stride among elements start .. start + n - 1.
  template <class F>
  void runs(int v, int64_t start, int64_t n, F f) const {
    const int last = dims_ - 1;
    const int64_t inner = sizes_[last];
    int64_t index[kMaxDims];
    int64_t offset = 0, rest = start;
    for (int d = last; d >= 0; --d) {
      index[d] = rest % sizes_[d];
      rest /= sizes_[d];
      offset += index[d] * strides_[v][d];
    }
    for (int64_t done = 0; done < n;) {
      const int64_t left = inner - index[last];
      const int64_t length = left < n - done ? left : n - done;
      f(offset, done, length, strides_[v][last]);
      done += length;
      if (done >= n) break;
      offset -= index[last] * strides_[v][last];
      index[last] = 0;
      for (int d = last - 1; d >= 0; --d) {
        offset += strides_[v][d];
        if (++index[d] < sizes_[d]) break;
        offset -= sizes_[d] * strides_[v][d];
        index[d] = 0;
      }
    }
  }

  // Offset of element `start` if n elements from there are one run of stride 1, or -1.
  int64_t contiguous(int v, int64_t start, int64_t n) const {
    const int last = dims_ - 1;
    if (strides_[v][last] != 1 || start % sizes_[last] + n > sizes_[last]) return -1;
    int64_t offset = 0, rest = start;
    for (int d = last; d >= 0; --d) {
      offset += rest % sizes_[d] * strides_[v][d];
      rest /= sizes_[d];
    }
    return offset;
  }

 private:
  int dims_ = 0;
  int64_t sizes_[kMaxDims + 1];
  int64_t strides_[kMaxViews][kMaxDims + 1];
};

// One tensor of a call, read or written a chunk at a time. S is its storage type.
template <class S>
class Access {
 public:
  using T = typename Arithmetic<S>::T;

  Access() = default;
  Access(const View& view, const Dims& dims, int index, bool streaming = false)
      : data_(static_cast<char*>(view.data)),
        draw_stride_(view.draw_stride),
        dims_(&dims),
        index_(index),
        direct_(view.wide || sizeof(S) == sizeof(T)),
        streaming_(streaming) {}

  explicit operator bool() const { return data_ != nullptr; }

  // The chunk is needed soon, where its lines are in a row.
  void soon(int64_t start, int64_t n, Ahead& ahead, int64_t draw = 0) const {
    const int64_t size = static_cast<int64_t>(direct_ ? sizeof(T) : sizeof(S));
    const int64_t offset = dims_->contiguous(index_, start, n);
    if (offset >= 0 && !streaming_) ahead.add(data_ + (offset + draw * draw_stride_) * size, size);
  }

  // The chunk's values: in place, or in the buffer.
  const T* read(int64_t start, int64_t n, T* buffer, int64_t draw = 0) const {
    if (direct_) {
      const T* in = reinterpret_cast<const T*>(data_) + draw * draw_stride_;
      const int64_t offset = dims_->contiguous(index_, start, n);
      if (offset >= 0) return in + offset;
      gather(in, start, n, buffer);
    } else {
      gather(reinterpret_cast<const S*>(data_) + draw * draw_stride_, start, n, buffer);
    }
    return buffer;
  }

  // The chunk as it is stored, if that is a row of 16-bit numbers; else null.
  S* row(int64_t start, int64_t n) const {
    const int64_t offset = direct_ ? -1 : dims_->contiguous(index_, start, n);
    return offset < 0 ? nullptr : reinterpret_cast<S*>(data_) + offset;
  }
  // Where to write a row: in place, or the buffer. `write_row` completes it.
  S* row_target(int64_t start, int64_t n, S* buffer) const {
    return streaming_ ? buffer : row(start, n);
  }
  void write_row(int64_t start, int64_t n, const S* buffer) const {
    if (streaming_) stream(buffer, row(start, n), n * static_cast<int64_t>(sizeof(S)));
  }

  // Where to write the chunk past the caches, if it is a row from a line's beginning on; else null.
  T* lines(int64_t start, int64_t n, int64_t draw = 0) const {
    if (!direct_ || !streaming_) return nullptr;
    const int64_t offset = dims_->contiguous(index_, start, n);
    if (offset < 0) return nullptr;
    T* const out = reinterpret_cast<T*>(data_) + draw * draw_stride_ + offset;
    return reinterpret_cast<uintptr_t>(out) % 64 == 0 ? out : nullptr;
  }

  // Where to write the chunk: in place, or the buffer. `write` completes it.
  T* target(int64_t start, int64_t n, T* buffer, int64_t draw = 0) const {
    if (direct_ && !streaming_) {
      const int64_t offset = dims_->contiguous(index_, start, n);
      if (offset >= 0) return reinterpret_cast<T*>(data_) + draw * draw_stride_ + offset;
    }
    return buffer;
  }
  void write(int64_t start, int64_t n, const T* from, const T* buffer, int64_t draw = 0) const {
    if (from != buffer) return;
    S* out = reinterpret_cast<S*>(data_) + draw * draw_stride_;
    dims_->runs(index_, start, n,
                [&](int64_t offset, int64_t done, int64_t length, int64_t stride) {
                  if (stride != 1) {
                    for (int64_t i = 0; i < length; ++i)
                      store(from[done + i], out[offset + i * stride]);
                  } else if (!streaming_) {
                    store_dense(from + done, length, out + offset);
                  } else if constexpr (sizeof(S) == sizeof(T)) {
                    stream(from + done, out + offset, length * static_cast<int64_t>(sizeof(S)));
                  } else {
                    S rounded[kChunk];
                    store_dense(from + done, length, rounded);
                    stream(rounded, out + offset, length * static_cast<int64_t>(sizeof(S)));
                  }
                });
  }

 private:
  template <class In>
  void gather(const In* in, int64_t start, int64_t n, T* buffer) const {
    dims_->runs(index_, start, n,
                [&](int64_t offset, int64_t done, int64_t length, int64_t stride) {
                  if (stride == 1) {
                    // As a rule the next chunk follows. Tensors are converted one after the other,
                    // in stretches too short for a processor to foresee.
                    const char* next = reinterpret_cast<const char*>(in + offset + length);
                    const int64_t bytes = length * static_cast<int64_t>(sizeof(In));
                    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
                    load_dense(in + offset, length, buffer + done);
                  } else if (stride == 0) {
                    const T value = load(in[offset]);
                    for (int64_t i = 0; i < length; ++i) buffer[done + i] = value;
                  } else {
                    for (int64_t i = 0; i < length; ++i)
                      buffer[done + i] = load(in[offset + i * stride]);
                  }
                });
  }

  char* data_ = nullptr;
  int64_t draw_stride_ = 0;
  const Dims* dims_ = nullptr;
  int index_ = 0;
  bool direct_ = false, streaming_ = false;
};

}  // namespace genkern::GENKERN_CAPABILITY
