// Stationary covariances as functions of u = sum_d ((x_d - y_d) / l_d)^2, and their derivatives, for kernel
// files. The periodic covariance is the squared exponential of points on circles, so it needs none here.
#pragma once

#include "gp_profile_kinds.h"
#include "gp_vector.h"

namespace varax {
namespace VARAX_ISA {

// k(u) at unit variance; `extra` is alpha of the rational quadratic (1 + u / (2 alpha))^(-alpha).
template <int kind, class T>
static inline typename Vec<T>::type profile(typename Vec<T>::type u, T extra) {
  typedef typename Vec<T>::type V;
  if constexpr (kind == kRbf) {
    return exponential(u * T(-0.5));
  } else if constexpr (kind == kMatern12) {
    return exponential(-square_root(u));
  } else if constexpr (kind == kMatern32) {
    V s = square_root(u * T(3));
    return (s + T(1)) * exponential(-s);
  } else if constexpr (kind == kMatern52) {
    V t = u * T(5), s = square_root(t);
    return (t * T(1.0 / 3) + s + T(1)) * exponential(-s);
  } else {
    return exponential(log_one_plus(u * (T(0.5) / extra)) * -extra);
  }
}

// k(u), dk/du and dk/d(extra). dk/du of Matern-1/2 is infinite at u = 0 and taken as 0 there.
template <int kind, class T>
static inline void profile_slopes(typename Vec<T>::type u, T extra, typename Vec<T>::type* k,
                                  typename Vec<T>::type* slope, typename Vec<T>::type* by_extra) {
  typedef typename Vec<T>::type V;
  *by_extra = V{};
  if constexpr (kind == kRbf) {
    *k = exponential(u * T(-0.5));
    *slope = *k * T(-0.5);
  } else if constexpr (kind == kMatern12) {
    V s = square_root(u);
    *k = exponential(-s);
    *slope = u == V{} ? V{} : *k / (s * T(-2));
  } else if constexpr (kind == kMatern32) {
    V s = square_root(u * T(3)), e = exponential(-s);
    *k = (s + T(1)) * e;
    *slope = e * T(-1.5);
  } else if constexpr (kind == kMatern52) {
    V t = u * T(5), s = square_root(t), e = exponential(-s);
    *k = (t * T(1.0 / 3) + s + T(1)) * e;
    *slope = (s + T(1)) * e * T(-5.0 / 6);
  } else {
    V z = u * (T(0.5) / extra), log = log_one_plus(z), base = z + T(1);
    *k = exponential(log * -extra);
    *slope = *k / base * T(-0.5);
    // log(1 + z) - s with s = z / (1 + z) cancels for small z, where it is s^2 / 2 + s^3 / 3 + ...
    V s = z / base, series = splat<T>(T(1.0 / 13));
    for (int power = 12; power >= 2; --power) series = series * s + T(1) / T(power);
    V term = s < splat<T>(T(sizeof(T) == 4 ? 0.25 : 0.05)) ? series * s * s : log - s;
    *by_extra = *k == V{} ? V{} : -(*k * term);
  }
}

// Call f<kind>(...) for a kind known at run time.
#define VARAX_BY_KIND(kind, f, ...)                               \
  switch (kind) {                                                 \
    case kRbf: return f<kRbf>(__VA_ARGS__);                       \
    case kMatern12: return f<kMatern12>(__VA_ARGS__);             \
    case kMatern32: return f<kMatern32>(__VA_ARGS__);             \
    case kMatern52: return f<kMatern52>(__VA_ARGS__);             \
    default: return f<kRationalQuadratic>(__VA_ARGS__);           \
  }

}  // namespace VARAX_ISA
}  // namespace varax
