// Vectors of floats and doubles, and the elementary functions that covariances need, for kernel files.
//
// GCC's vector extensions, so the same text is SSE or NEON, AVX2 and AVX-512. Errors are about 1 ulp for
// exp and 2 ulp for log1p. The polynomials interpolate at Chebyshev nodes after the usual reductions
// exp(x) = 2^n exp(r), |r| <= log(2)/2 (Cody and Waite), and log(m) = 2 atanh((m - 1) / (m + 1)).
#pragma once

#include "vector_bits.h"

#if defined(VARAX_X86) && VARAX_LEVEL > 0
#include <immintrin.h>
#endif

namespace varax {
namespace VARAX_ISA {

template <class T>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float loose __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int width = kVectorBytes / 4;
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double loose __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int width = kVectorBytes / 8;
};
typedef Vec<float>::type vf;
typedef Vec<double>::type vd;

template <class T>
static inline typename Vec<T>::type load(const T* p) {
  return *reinterpret_cast<const typename Vec<T>::loose*>(p);
}
template <class T>
static inline void store(T* p, typename Vec<T>::type v) {
  *reinterpret_cast<typename Vec<T>::loose*>(p) = v;
}
template <class T>
static inline typename Vec<T>::type splat(T x) {
  return typename Vec<T>::type{} + x;  // -0.0 becomes 0.0, which no caller minds
}
template <class T>
static inline double lanes_sum(typename Vec<T>::type v) {
  double sum = 0;
  for (int l = 0; l < Vec<T>::width; ++l) sum += static_cast<double>(v[l]);
  return sum;
}

// Square roots: an instruction, or one per lane.
static inline vf square_root(vf x) {
#if defined(VARAX_X86) && VARAX_LEVEL == 2
  return _mm512_maskz_sqrt_ps(0xffff, x);
#elif defined(VARAX_X86) && VARAX_LEVEL == 1
  return _mm256_sqrt_ps(x);
#else
  for (int l = 0; l < Vec<float>::width; ++l) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}
static inline vd square_root(vd x) {
#if defined(VARAX_X86) && VARAX_LEVEL == 2
  return _mm512_maskz_sqrt_pd(0xff, x);
#elif defined(VARAX_X86) && VARAX_LEVEL == 1
  return _mm256_sqrt_pd(x);
#else
  for (int l = 0; l < Vec<double>::width; ++l) x[l] = __builtin_sqrt(x[l]);
  return x;
#endif
}

// exp(x) for x <= 0; what would be below the smallest normal number is 0. NaN stays NaN.
static inline vf exponential(vf x) {
  typedef Vec<float>::bits vi;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  vf low = splat<float>(-87.3365448f);
  vi gone = x < low;
  vf bounded = gone ? low : x;
  vf shifted = bounded * 1.44269504f + magic;
  vf n = shifted - magic;
  vf r = bounded - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = r * 1.3926213e-3f + 8.3632030e-3f;
  p = p * r + 4.16665544e-2f;
  p = p * r + 1.66665768e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  vi power = ((vi)shifted << 23) + 0x3f800000;  // the high bits of `magic` are shifted out
  return gone ? vf{} : p * (vf)power;
}
static inline vd exponential(vd x) {
  typedef Vec<double>::bits vi;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  vd low = splat<double>(-708.396418532264);
  vi gone = x < low;
  vd bounded = gone ? low : x;
  vd shifted = bounded * 1.4426950408889634 + magic;
  vd n = shifted - magic;
  vd r = bounded - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  vd p = r * 2.5100424157005066788e-8 + 2.7620138719973995569e-7;
  p = p * r + 2.7557268378684192873e-6;
  p = p * r + 2.4801521190217727651e-5;
  p = p * r + 1.9841269863105968748e-4;
  p = p * r + 1.3888888917281793308e-3;
  p = p * r + 8.3333333333300513464e-3;
  p = p * r + 4.1666666666623991516e-2;
  p = p * r + 1.6666666666666667456e-1;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  p = p + 1.0;
  vi power = ((vi)shifted << 52) + 0x3ff0000000000000;
  return gone ? vd{} : p * (vd)power;
}

// log(1 + z) for z >= 0, infinity and NaN included. What 1 + z loses is added to first order.
static inline vf log_one_plus(vf z) {
  typedef Vec<float>::bits vi;
  vf w = z + 1.0f;
  vf lost = z - (w - 1.0f);
  vi e = ((vi)w - 0x3f3504f3) >> 23;  // w = m 2^e, sqrt(1/2) <= m < sqrt(2)
  vf m = (vf)((vi)w - (e << 23));
  vf n = __builtin_convertvector(e, vf);
  vf f = m - 1.0f;
  vf s = f / (m + 1.0f);
  vf q = s * s;
  vf p = q * 2.95809860e-1f + 3.99887577e-1f;
  p = p * q + 6.66666851e-1f;
  vf log = (p * q) * s + (s + s) + n * -2.12194440e-4f;
  log = log + n * 0.693359375f + lost / w;
  return z < splat<float>(3e38f) ? log : z;
}
static inline vd log_one_plus(vd z) {
  typedef Vec<double>::bits vi;
  vd w = z + 1.0;
  vd lost = z - (w - 1.0);
  const double magic = 6755399441055744.0;
  // An arithmetic shift of 64 bits is slow before AVX-512; since w >= 1, a logical one will do.
  typedef uint64_t vu __attribute__((vector_size(kVectorBytes)));
  vi e = (vi)((vu)((vi)w - 0x3fe6a09e667f3bcd) >> 52);
  vd m = (vd)((vi)w - (e << 52));
  vd n = (vd)(e + 0x4338000000000000) - magic;
  vd f = m - 1.0;
  vd s = f / (m + 1.0);
  vd q = s * s;
  vd p = q * 0.14617807153417324964 + 0.15331611722055007885;
  p = p * q + 0.18182892432536871201;
  p = p * q + 0.22222211089379496214;
  p = p * q + 0.28571428626253837606;
  p = p * q + 0.39999999999898890514;
  p = p * q + 0.66666666666666697077;
  vd log = (p * q) * s + (s + s) + n * 1.42860682030941723212e-6;
  log = log + n * 6.93145751953125e-1 + lost / w;
  return z < splat<double>(1e308) ? log : z;
}

}  // namespace VARAX_ISA
}  // namespace varax
