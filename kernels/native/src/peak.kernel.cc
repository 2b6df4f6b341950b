#include "peak.h"

#if VARAX_LEVEL > 0
#include <immintrin.h>
#endif

namespace varax::VARAX_ISA {

double peak_int8(int64_t steps, int32_t* out) {
#if VARAX_LEVEL == 2
  __m512i a = _mm512_set1_epi8(static_cast<char>(*out & 1)), sum[8];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 8
    for (auto& s : sum) s = _mm512_dpbusd_epi32(s, a, a);
  }
  for (int k = 1; k < 8; ++k) sum[0] = _mm512_add_epi32(sum[0], sum[k]);
  *out = _mm512_reduce_add_epi32(sum[0]);
  return static_cast<double>(steps) * 8 * 128;
#elif VARAX_LEVEL == 1
  const __m256i a = _mm256_set1_epi8(static_cast<char>(*out & 1)), ones = _mm256_set1_epi16(1);
  __m256i sum[8], x[8];
  for (int k = 0; k < 8; ++k) sum[k] = _mm256_setzero_si256(), x[k] = a;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      asm volatile("" : "+x"(x[k]));  // as if loaded: no product is taken out of the loop
      sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(_mm256_maddubs_epi16(x[k], a), ones));
    }
  }
  for (int k = 1; k < 8; ++k) sum[0] = _mm256_add_epi32(sum[0], sum[k]);
  *out = _mm256_extract_epi32(sum[0], 0);
  return static_cast<double>(steps) * 8 * 64;
#else
  // As the compiler finds it: a dot product of bytes.
  alignas(64) int8_t a[64], b[64];
  for (int k = 0; k < 64; ++k) a[k] = b[k] = static_cast<int8_t>(*out + k);
  int32_t sum = 0;
  for (int64_t i = 0; i < steps; ++i) {
    a[i & 63] ^= 1;
    for (int k = 0; k < 64; ++k) sum += static_cast<int32_t>(a[k]) * b[k];
  }
  *out = sum;
  return static_cast<double>(steps) * 128;
#endif
}

}  // namespace varax::VARAX_ISA
