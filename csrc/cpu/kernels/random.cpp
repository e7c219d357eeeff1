// Noise, for one instruction set: GENKERN_CAPABILITY is its namespace.
#include "cpu/driver.h"

namespace genkern::GENKERN_CAPABILITY {
namespace {

void numbers(const Numbers& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const int64_t chunks = (call.length + kChunk - 1) / kChunk;
    S* const out = static_cast<S*>(call.out);
    const bool streaming =
        call.samples * call.length * static_cast<int64_t>(sizeof(S)) >= kStreamBytes;
    const int64_t grain = kNoiseGrain / (call.length < kChunk ? call.length + 1 : kChunk) + 1;
    parallel(call.parallel, call.samples * chunks, grain, [&](int64_t begin, int64_t end) {
      alignas(64) T buffer[kChunk];
      alignas(64) S rounded[kChunk];
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t sample = unit / chunks, start = unit % chunks * kChunk;
        const int64_t n = call.length - start < kChunk ? call.length - start : kChunk;
        S* const to = out + sample * call.length + start;
        const Key key = call.keys.data[call.keys.per_sample ? sample : 0];
        T* direct = buffer;
        if constexpr (sizeof(S) == sizeof(T)) direct = streaming ? buffer : to;
        Ahead ahead;
        (call.normal ? fill_normal<T> : fill_uniform<T>)(key, static_cast<uint64_t>(start), n,
                                                         direct, ahead);
        if (direct != buffer) continue;
        if constexpr (sizeof(S) == sizeof(T)) {
          stream(buffer, to, n * static_cast<int64_t>(sizeof(S)));
        } else if (streaming) {
          store_dense(buffer, n, rounded);
          stream(rounded, to, n * static_cast<int64_t>(sizeof(S)));
        } else {
          store_dense(buffer, n, to);
        }
      }
    });
  });
}

}  // namespace

const RandomKernels& random_kernels() {
  static const RandomKernels table = {numbers};
  return table;
}

}  // namespace genkern::GENKERN_CAPABILITY
