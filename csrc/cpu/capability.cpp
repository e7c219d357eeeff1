#include "cpu/capability.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace genkern {
namespace {

Capability detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Capability::kAvx512;
  if (avx2) return Capability::kAvx2;
#endif
  return Capability::kBaseline;
}

Capability choose() {
  const Capability best = detect();
  const char* wanted = std::getenv("GENKERN_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best;
  const char* const names[] = {"baseline", "avx2", "avx512"};
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(wanted, names[i]) == 0) {
      if (i <= static_cast<int>(best)) return static_cast<Capability>(i);
      std::fprintf(stderr, "genkern: this processor has no %s, using %s\n", wanted,
                   names[static_cast<int>(best)]);
      return best;
    }
  }
  std::fprintf(stderr,
               "genkern: GENKERN_CPU_CAPABILITY must be one of baseline, avx2, avx512, got %s\n",
               wanted);
  return best;
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

}  // namespace genkern
