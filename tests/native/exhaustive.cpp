// The radius and the angle of the float32 normal, for all 2^32 words, against float64.
//
// Prints the worst errors in ulp of the exact value at the same u or v: radius, cosine, sine.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "genkern/normal.h"

namespace {

using Lanes = genkern::ScalarLanes;

struct Worst {
  double radius = 0, cosine = 0, sine = 0;
};

double error(float value, double exact) {
  if (exact == 0) return value == 0 ? 0 : INFINITY;
  const float near = std::fabs(static_cast<float>(exact));
  const double ulp = static_cast<double>(std::nextafter(near, INFINITY)) - near;
  return std::fabs(value - exact) / ulp;
}

Worst check(uint64_t first, uint64_t last) {
  Worst worst;
  for (uint64_t i = first; i < last; ++i) {
    const auto word = static_cast<uint32_t>(i);
    const double u = Lanes::unit_interval(word), turns = Lanes::quarter_turns(word);
    worst.radius =
        std::max(worst.radius, error(genkern::radius<Lanes>(word), std::sqrt(-2 * std::log(u))));

    float cosine, sine;
    uint32_t sign;
    genkern::angle<Lanes>(word, cosine, sine, sign);
    if (sign >> 31) cosine = -cosine, sine = -sine;
    // Reduced to an eighth of a turn, exactly, so that the float64 functions are accurate.
    const double quarter = std::nearbyint(turns), theta = (turns - quarter) * (M_PI / 2);
    const double s = std::sin(theta), c = std::cos(theta);
    const double cosines[] = {c, -s, -c, s}, sines[] = {s, c, -s, -c};
    const int q = static_cast<int>(quarter) & 3;
    worst.cosine = std::max(worst.cosine, error(cosine, cosines[q]));
    worst.sine = std::max(worst.sine, error(sine, sines[q]));
  }
  return worst;
}

}  // namespace

int main() {
  const unsigned count = std::max(1u, std::thread::hardware_concurrency());
  std::vector<Worst> worst(count);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < count; ++t) {
    threads.emplace_back(
        [&, t] { worst[t] = check((uint64_t{t} << 32) / count, (uint64_t{t + 1} << 32) / count); });
  }
  Worst all;
  for (unsigned t = 0; t < count; ++t) {
    threads[t].join();
    all.radius = std::max(all.radius, worst[t].radius);
    all.cosine = std::max(all.cosine, worst[t].cosine);
    all.sine = std::max(all.sine, worst[t].sine);
  }
  std::printf("%.4f %.4f %.4f\n", all.radius, all.cosine, all.sine);
}
