// Short vectors of the compiler (GCC, Clang), and an exponential, for kernel files.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector_bits.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// L lanes of T, and of the integer of the same size.
template <class T, int L>
struct Lanes {
  typedef T V __attribute__((vector_size(L * sizeof(T))));
  typedef typename Bits<T>::Int I __attribute__((vector_size(L * sizeof(T))));
};

template <class V, class T>
VARAX_INLINE V load(const T* at) {
  V v;
  std::memcpy(&v, at, sizeof(V));
  return v;
}

template <class V, class T>
VARAX_INLINE void store(T* at, V v) {
  std::memcpy(at, &v, sizeof(V));
}

// Lane i ^ h of a vector in lane i: sums and maxima over lanes in log2(L) steps.
template <class T, int L>
VARAX_INLINE typename Lanes<T, L>::V swapped(typename Lanes<T, L>::V v, int h) {
#if defined(__clang__)
#define VARAX_SHUFFLE(...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define VARAX_SHUFFLE(...) __builtin_shuffle(v, typename Lanes<T, L>::I{__VA_ARGS__})
#endif
  if constexpr (L == 2) return VARAX_SHUFFLE(1, 0);
  if constexpr (L == 4) return h == 2 ? VARAX_SHUFFLE(2, 3, 0, 1) : VARAX_SHUFFLE(1, 0, 3, 2);
  if constexpr (L == 8)
    return h == 4   ? VARAX_SHUFFLE(4, 5, 6, 7, 0, 1, 2, 3)
           : h == 2 ? VARAX_SHUFFLE(2, 3, 0, 1, 6, 7, 4, 5)
                    : VARAX_SHUFFLE(1, 0, 3, 2, 5, 4, 7, 6);
  if constexpr (L == 16)
    return h == 8   ? VARAX_SHUFFLE(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
           : h == 4 ? VARAX_SHUFFLE(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
           : h == 2 ? VARAX_SHUFFLE(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
                    : VARAX_SHUFFLE(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#undef VARAX_SHUFFLE
}

template <class T, int L>
VARAX_INLINE T sum_of(typename Lanes<T, L>::V v) {
  if constexpr (L >= 16) v += swapped<T, L>(v, 8);
  if constexpr (L >= 8) v += swapped<T, L>(v, 4);
  if constexpr (L >= 4) v += swapped<T, L>(v, 2);
  return v[0] + v[1];
}

template <class T, int L>
VARAX_INLINE T max_of(typename Lanes<T, L>::V v) {
  typename Lanes<T, L>::V w;
  if constexpr (L >= 16) w = swapped<T, L>(v, 8), v = v > w ? v : w;
  if constexpr (L >= 8) w = swapped<T, L>(v, 4), v = v > w ? v : w;
  if constexpr (L >= 4) w = swapped<T, L>(v, 2), v = v > w ? v : w;
  return v[0] > v[1] ? v[0] : v[1];
}

// exp(min(x, 80)) by 2^n exp(r), |r| <= ln(2) / 2, and the Taylor polynomial of exp(r), whose error is
// below 6e-9 (degree 7, float) and 5e-18 (degree 13, double). 0 where the result would be subnormal;
// NaN stays NaN.
template <class T, int L>
VARAX_INLINE typename Lanes<T, L>::V exp_of(typename Lanes<T, L>::V x) {
  typedef typename Lanes<T, L>::V V;
  typedef typename Lanes<T, L>::I I;
  constexpr bool single = sizeof(T) == 4;
  constexpr T magic = single ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa
  constexpr T high = single ? T(0.693359375) : T(0.693145751953125);   // few bits: n * high is exact
  constexpr T low = single ? T(-2.12194440054690583e-4) : T(1.42860682030941723212e-6);
  constexpr T least = single ? T(-87.3) : T(-708.3);
  const V zero = {}, top = zero + T(80);
  const I small = x < zero + least, nan = x != x;
  V y = x > top ? top : x;
  y = small | nan ? zero : y;
  const V shifted = y * T(1.44269504088896340736) + magic;
  const V n = shifted - magic;
  const V r = (y - n * high) - n * low;
  V p;
  if constexpr (single) {
    p = zero + T(1.0 / 5040);
    p = p * r + T(1.0 / 720);
  } else {
    p = zero + T(1.0 / 6227020800.0);
    p = p * r + T(1.0 / 479001600);
    p = p * r + T(1.0 / 39916800);
    p = p * r + T(1.0 / 3628800);
    p = p * r + T(1.0 / 362880);
    p = p * r + T(1.0 / 40320);
    p = p * r + T(1.0 / 5040);
    p = p * r + T(1.0 / 720);
  }
  p = p * r + T(1.0 / 120);
  p = p * r + T(1.0 / 24);
  p = p * r + T(1.0 / 6);
  p = p * r + T(0.5);
  p = p * r + T(1);
  p = p * r + T(1);
  const I power = __builtin_convertvector(n, I) + Bits<T>::bias;
  const V scaled = p * (V)(power << Bits<T>::mantissa);
  return nan ? x : small ? zero : scaled;
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
