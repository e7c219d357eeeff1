// The noise that genkern_host draws, compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "genkern/philox.h"

namespace genkern {

// Each writes the first `count` numbers of a key's stream.
struct Streams {
  void (*uniform)(Key key, int64_t count, float* out);
  void (*uniform64)(Key key, int64_t count, double* out);
  void (*normal)(Key key, int64_t count, float* out);
  void (*normal64)(Key key, int64_t count, double* out);
};

namespace baseline {
Streams streams();
}
#if defined(__x86_64__)
namespace avx2 {
Streams streams();
}
namespace avx512 {
Streams streams();
}
#endif

}  // namespace genkern
