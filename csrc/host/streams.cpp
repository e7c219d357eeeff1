#include "host/streams.h"

#include "cpu/noise.h"

namespace genkern::GENKERN_CAPABILITY {

template <class Kind, class T>
void first_numbers(Key key, int64_t count, T* out) {
  Ahead none;
  fill<Kind>(key, 0, count, out, none);
}

Streams streams() {
  return {first_numbers<Uniform, float>, first_numbers<Uniform, double>,
          first_numbers<Normal, float>, first_numbers<Normal, double>};
}

}  // namespace genkern::GENKERN_CAPABILITY
