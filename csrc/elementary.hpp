// Powers and tanh in sixteen lanes, from multiply-adds alone, so that every path of vector code gives the same bits. A
// NaN stays a NaN: the order of the operands of min and max is what sees to that, for they return the second one then.
#pragma once

#include "simd_cache.hpp"

namespace puna::PUNA_NS {

// exp(x) = 2^n (1 + tail) with n whole, |x - n log 2| <= log(2) / 2 and a polynomial of degree 6 for the tail.
struct Exponential {
  VF n;
  VF tail;
};

static inline Exponential split_exponential(VF x) {
  const VF n = round_even(mul(x, set1(1.44269504f)));
  VF r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  VF p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return {n, fma(mul(p, r), r, r)};
}

// exp(x) within 2 ulp for x <= 88; below -87.3 the result is flushed to about 1e-38.
static inline VF exponential(VF x) {
  x = max(set1(-87.3f), min(set1(88.0f), x));
  const Exponential e = split_exponential(x);
  return scale_by_power_of_two(add(e.tail, set1(1.0f)), e.n);
}

// 2^x within 2 ulp for x <= 0, and nothing at all below -115: what such weights would add is lost in rounding, but
// products that are too small for the format cost a hundred times as much as others.
static inline VF softmax_weight(VF x) {
  const VF held = max(set1(-126.0f), x);
  const VF n = round_even(held);
  const VF r = sub(held, n);
  VF p = set1(1.5353362e-4f);
  p = fma(p, r, set1(1.3398874e-3f));
  p = fma(p, r, set1(9.618437e-3f));
  p = fma(p, r, set1(5.5503324e-2f));
  p = fma(p, r, set1(2.4022648e-1f));
  p = fma(p, r, set1(6.931472e-1f));
  p = fma(p, r, set1(1.0f));
  return zero_below(x, -115.0f, scale_by_power_of_two(p, n));
}

// tanh(x) = t / (t + 2) with t = exp(2 x) - 1, whose leading digits are not lost around 0.
static inline VF hyperbolic_tangent(VF x) {
  const VF twice = max(set1(-40.0f), min(set1(40.0f), add(x, x)));
  const Exponential e = split_exponential(twice);
  const VF power = scale_by_power_of_two(set1(1.0f), e.n);
  const VF t = fma(e.tail, power, sub(power, set1(1.0f)));
  return div(t, add(t, set1(2.0f)));
}

}  // namespace puna::PUNA_NS
