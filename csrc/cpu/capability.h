// The instruction sets the kernels are compiled for, and which of them this process uses.
#pragma once

namespace genkern {

enum class Capability { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best that the processor has, or less if GENKERN_CPU_CAPABILITY says so. Decided once.
Capability capability();

}  // namespace genkern
