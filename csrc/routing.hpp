// Which experts a token goes to, and with what share of its result.
//
// Plain scalar arithmetic in one order, with an exponential of its own: a choice between two experts that are nearly
// equal must not depend on the instruction path or on a library. Sums are in double precision, shares are float32.
#pragma once

#include <cmath>
#include <cstdint>

namespace puna {

// exp(x) for x <= 0, within 2 ulp: 2^n times a series of r, |r| <= log(2) / 2. A NaN stays one.
inline double decaying_power(double x) {
  constexpr double SERIES[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                               1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2,     1.0,
                               1.0};
  if (!(x > -700.0)) return x != x ? x : 0.0;
  const double n = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double sum = 0;
  for (const double factor : SERIES) sum = sum * r + factor;
  return std::ldexp(sum, static_cast<int>(n));
}

inline float sigmoid_of(float x) {
  if (x >= 0) return static_cast<float>(1.0 / (1.0 + decaying_power(-static_cast<double>(x))));
  const double power = decaying_power(static_cast<double>(x));
  return static_cast<float>(power / (1.0 + power));
}

// The `used` best experts by the softmax of `scores` (of equals the lower number), best first, and what each counts: its
// share, divided by the sum of theirs where `normalised`, times `scale`. Where a score is NaN or plus infinity, all shares
// are NaN and the first experts are chosen. `powers` has room for one an expert.
inline void route(const float* scores, int64_t experts, int64_t used, bool normalised, float scale, double* powers,
                  int32_t* chosen, float* chosen_shares) {
  double highest = scores[0];
  for (int64_t e = 1; e < experts; ++e)
    if (scores[e] > highest || scores[e] != scores[e]) highest = scores[e];
  double sum = 0;
  for (int64_t e = 0; e < experts; ++e) sum += powers[e] = decaying_power(static_cast<double>(scores[e]) - highest);
  int64_t count = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const float share = static_cast<float>(powers[e] / sum);
    if (count == used && !(share > chosen_shares[used - 1])) continue;
    int64_t at = count < used ? count++ : used - 1;
    for (; at > 0 && share > chosen_shares[at - 1]; --at) {
      chosen[at] = chosen[at - 1];
      chosen_shares[at] = chosen_shares[at - 1];
    }
    chosen[at] = static_cast<int32_t>(e);
    chosen_shares[at] = share;
  }
  double all = 0;
  for (int64_t s = 0; s < used; ++s) all += chosen_shares[s];
  for (int64_t s = 0; s < used; ++s) {
    if (normalised) chosen_shares[s] = static_cast<float>(chosen_shares[s] / all);
    chosen_shares[s] *= scale;
  }
}

}  // namespace puna
