// Qualifiers that let one text compile for the host and for CUDA devices.
#pragma once

#if defined(__CUDACC__)
#define GENKERN_HD __host__ __device__ __forceinline__
#else
#define GENKERN_HD __attribute__((always_inline)) inline
#endif
