// The instruction sets the kernels are compiled for, and which of them this process uses.
#pragma once

namespace genkern {

enum class Capability { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best that the processor has, or less if GENKERN_CPU_CAPABILITY says so. Decided once.
Capability capability();

}  // namespace genkern

// A call of the function that was compiled for this instruction set, in its namespace.
#if defined(GENKERN_ONLY)
#define GENKERN_DISPATCH(call) (::genkern::GENKERN_ONLY::call)
#elif defined(__x86_64__)
#define GENKERN_DISPATCH(call)                                                         \
  (::genkern::capability() == ::genkern::Capability::kAvx512 ? ::genkern::avx512::call \
   : ::genkern::capability() == ::genkern::Capability::kAvx2 ? ::genkern::avx2::call   \
                                                             : ::genkern::baseline::call)
#else
#define GENKERN_DISPATCH(call) (::genkern::baseline::call)
#endif
