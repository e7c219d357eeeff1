// The counts of ten tests of randomness, of 32-bit words on standard input.
//
// The tests and their parameters are those of SmallCrush (L'Ecuyer and Simard, "TestU01: a C
// library for empirical testing of random number generators", ACM Trans. Math. Softw. 33, 2007),
// written from the definitions there and in Knuth, vol. 2, 3.3.2. One line a statistic: its name
// and its counts. battery.py knows the laws. The argument multiplies the sizes of the samples; the
// two tests whose law depends on the size are done so many times, and their counts added.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

uint32_t next() {
  static std::vector<uint32_t> buffer(1 << 16);
  static size_t at = 0, size = 0;
  if (at == size) {
    size = std::fread(buffer.data(), sizeof(uint32_t), buffer.size(), stdin);
    at = 0;
    if (size == 0) {
      std::fprintf(stderr, "battery: the words ended too early\n");
      std::exit(1);
    }
  }
  return buffer[at++];
}

// `count` bits of a word, after its `skip` most significant ones.
uint32_t bits(int skip, int count) { return next() << skip >> (32 - count); }

template <class T>
void print(const char* name, const std::vector<T>& counts) {
  std::printf("%s", name);
  for (const T count : counts) std::printf(" %.17g", static_cast<double>(count));
  std::printf("\n");
}

using Counts = std::vector<int64_t>;

void add(Counts& counts, size_t value) { ++counts[std::min(value, counts.size() - 1)]; }

template <class T>
int64_t equal_neighbours(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  int64_t count = 0;
  for (size_t i = 1; i < values.size(); ++i) count += values[i] == values[i - 1];
  return count;
}

void birthday_spacings(int scale) {
  int64_t count = 0;
  std::vector<uint64_t> days(5'000'000), spacings(days.size() - 1);
  for (int repeat = 0; repeat < scale; ++repeat) {
    for (uint64_t& day : days) {
      const uint64_t high = bits(0, 30);
      day = high << 30 | bits(0, 30);
    }
    std::sort(days.begin(), days.end());
    for (size_t i = 0; i < spacings.size(); ++i) spacings[i] = days[i + 1] - days[i];
    count += equal_neighbours(spacings);
  }
  print("birthday_spacings", Counts{count});
}

void collision(int scale) {
  int64_t count = 0;
  std::vector<uint32_t> cells(5'000'000);
  for (int repeat = 0; repeat < scale; ++repeat) {
    for (uint32_t& cell : cells) {
      const uint32_t high = bits(0, 16);
      cell = high << 16 | bits(0, 16);
    }
    count += equal_neighbours(cells);
  }
  print("collision", Counts{count});
}

// Numbers between two that are below 1/256.
void gap(int scale) {
  Counts counts(4096);
  for (int i = 0; i < 200'000 * scale; ++i) {
    size_t length = 0;
    while (bits(22, 8) != 0) ++length;
    add(counts, length);
  }
  print("gap", counts);
}

// Different values among 64.
void poker(int scale) {
  Counts counts(65);
  for (int i = 0; i < 400'000 * scale; ++i) {
    uint64_t seen = 0;
    for (int j = 0; j < 64; ++j) seen |= uint64_t{1} << bits(24, 6);
    add(counts, __builtin_popcountll(seen));
  }
  print("poker", counts);
}

// Numbers until all 16 values have come.
void coupon_collector(int scale) {
  Counts counts(512);
  for (int i = 0; i < 500'000 * scale; ++i) {
    size_t length = 0;
    for (uint32_t seen = 0; seen != 0xffff; ++length) seen |= 1u << bits(26, 4);
    add(counts, length);
  }
  print("coupon_collector", counts);
}

// The sixth power of the largest of 6 is uniform: in classes, and by Anderson and Darling.
void max_of_t(int scale) {
  Counts counts(100'000);
  std::vector<double> values(size_t{2'000'000} * scale);
  for (double& value : values) {
    uint32_t largest = 0;
    for (int j = 0; j < 6; ++j) largest = std::max(largest, next());
    value = std::pow((largest + 0.5) * 0x1p-32, 6);
    add(counts, static_cast<size_t>(value * counts.size()));
  }
  print("max_of_t", counts);
  std::sort(values.begin(), values.end());
  const double n = values.size();
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double upper = values[values.size() - 1 - i];
    sum += (2.0 * i + 1.0) * (std::log(values[i]) + std::log1p(-upper));
  }
  print("max_of_t_anderson_darling", std::vector<double>{-n - sum / n});
}

// Numbers below 1/8 among 256.
void weight_distribution(int scale) {
  Counts counts(257);
  for (int i = 0; i < 200'000 * scale; ++i) {
    size_t below = 0;
    for (int j = 0; j < 256; ++j) below += bits(27, 3) == 0;
    add(counts, below);
  }
  print("weight_distribution", counts);
}

// Of 60 x 60 matrices of bits.
void matrix_rank(int scale) {
  Counts counts(61);
  for (int i = 0; i < 20'000 * scale; ++i) {
    std::vector<uint64_t> rows(60);
    for (uint64_t& row : rows)
      for (int j = 0; j < 6; ++j) row = row << 10 | bits(20, 10);
    size_t rank = 0;
    for (int column = 0; column < 60; ++column) {
      const uint64_t bit = uint64_t{1} << column;
      size_t pivot = rank;
      while (pivot < rows.size() && !(rows[pivot] & bit)) ++pivot;
      if (pivot == rows.size()) continue;
      std::swap(rows[rank], rows[pivot]);
      for (size_t r = rank + 1; r < rows.size(); ++r)
        if (rows[r] & bit) rows[r] ^= rows[rank];
      ++rank;
    }
    add(counts, rank);
  }
  print("matrix_rank", counts);
}

// The weights of two blocks of 300 bits, as a table.
void hamming_independence(int scale) {
  Counts counts(301 * 301);
  for (int i = 0; i < 500'000 * scale; ++i) {
    size_t weight[2] = {0, 0};
    for (size_t& w : weight)
      for (int j = 0; j < 30; ++j) w += __builtin_popcount(bits(20, 10));
    add(counts, weight[0] * 301 + weight[1]);
  }
  print("hamming_independence", counts);
}

// Walks of 150 steps: steps up, maximum, steps above 0, returns to 0, changes of sign.
void random_walk(int scale) {
  Counts ups(151), maximum(151), above(151), returns(151), changes(151);
  for (int i = 0; i < 1'000'000 * scale; ++i) {
    int place = 0, highest = 0, last_sign = 0;
    size_t up = 0, steps_above = 0, zeros = 0, signs = 0;
    for (int j = 0; j < 5; ++j) {
      const uint32_t word = bits(0, 30);
      for (int b = 29; b >= 0; --b) {
        const int before = place, step = word >> b & 1;
        up += step;
        place += 2 * step - 1;
        highest = std::max(highest, place);
        steps_above += place > 0 || before > 0;
        zeros += place == 0;
        const int sign = (place > 0) - (place < 0);
        if (sign != 0) {
          signs += sign == -last_sign;
          last_sign = sign;
        }
      }
    }
    add(ups, up);
    add(maximum, highest);
    add(above, steps_above);
    add(returns, zeros);
    add(changes, signs);
  }
  print("walk_ups", ups);
  print("walk_maximum", maximum);
  print("walk_above", above);
  print("walk_returns", returns);
  print("walk_sign_changes", changes);
}

}  // namespace

int main(int argc, char** argv) {
  const int scale = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  birthday_spacings(scale);
  collision(scale);
  gap(scale);
  poker(scale);
  coupon_collector(scale);
  max_of_t(scale);
  weight_distribution(scale);
  matrix_rank(scale);
  hamming_independence(scale);
  random_walk(scale);
}
