// Memory of large new tensors.
//
// The system clears every page that it gives to a program, at a page fault each: for an output that
// does not fit the caches this takes about as long as computing it. So the memory of a large tensor
// that is freed is kept for the next one of its size. What is kept is the system's to take back at
// any time (MADV_FREE): it is memory only as long as nobody else wants it.
#pragma once

#include <cstdint>

namespace genkern {

// Less than this comes from the C library, which has memory to reuse.
constexpr int64_t kLargeBytes = int64_t{8} << 20;

// Null where there is no such memory. Aligned to pages of 2 MB, and in such pages where the system
// leaves the choice to programs.
void* take_block(int64_t bytes);

// `bytes` as they were taken.
void give_block(void* block, int64_t bytes);

}  // namespace genkern
