// Callgrind's client requests: outside of valgrind they do nothing.
#include <valgrind/callgrind.h>

extern "C" {

void start() { CALLGRIND_START_INSTRUMENTATION; }

void zero() { CALLGRIND_ZERO_STATS; }

// Writes the counts since zero() to a file of its own, under a label.
void dump(const char* label) { CALLGRIND_DUMP_STATS_AT(label); }

}  // extern "C"
