// Packed codes as floats: the weights before the scales. Kernel files only.
//
// A grid of at most 16 values is one register, and the code's place in it one permutation.
#pragma once

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include "quantized_bytes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

inline void as_ints(const Bytes& v, Ints& out) { std::memcpy(&out, &v, 64); }

// The entries of a table of 16 at the low 4 bits of each index.
struct Grid {
#if VARAX_LEVEL == 2
  __m512 entries;
  explicit Grid(const float* t) : entries(_mm512_loadu_ps(t)) {}
  void operator()(const Ints& index, Floats& out) const {
    out = (Floats)_mm512_permutexvar_ps((__m512i)index, entries);
  }
#elif VARAX_LEVEL == 1
  __m256 low, high;
  explicit Grid(const float* t) : low(_mm256_loadu_ps(t)), high(_mm256_loadu_ps(t + 8)) {}
  void operator()(const Ints& index, Floats& out) const {
    for (int h = 0; h < 2; ++h) {
      __m256i i = _mm256_loadu_si256((const __m256i*)&index + h);
      __m256 a = _mm256_permutevar8x32_ps(low, i), b = _mm256_permutevar8x32_ps(high, i);
      __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
      _mm256_storeu_ps((float*)&out + 8 * h, _mm256_blendv_ps(a, b, upper));
    }
  }
#else
  const float* entries;
  explicit Grid(const float* t) : entries(t) {}
  void operator()(const Ints& index, Floats& out) const {
    for (int n = 0; n < 16; ++n) out[n] = entries[index[n] & 15];
  }
#endif
};

// The weights of 4 successive inputs, before the scales.
template <int BITS>
inline void decode_quad(const uint8_t* unit, int q, const Grid& grid, const Floats& zeros, Floats* out) {
  Ints codes;
  as_ints(quad_of_unit<BITS>(unit, q), codes);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (BITS == 8) {
      out[i] = __builtin_convertvector((codes >> (8 * i)) & 255, Floats) - zeros;
    } else {
      Floats v;
      grid(codes >> (8 * i), v);
      out[i] = v - zeros;
    }
  }
}

template <int BITS>
void decode(const uint8_t* unit, int64_t inputs, const Grid& grid, const Floats& zeros, Floats* out) {
  constexpr int quads = quads_of_unit(BITS);
  for (int64_t u = 0; u < inputs / (4 * quads); ++u, unit += bytes_of_unit(BITS)) {
#pragma GCC unroll 4
    for (int q = 0; q < quads; ++q, out += 4) decode_quad<BITS>(unit, q, grid, zeros, out);
  }
}

inline void decode(int64_t bits, const uint8_t* codes, int64_t inputs, const Grid& grid, const Floats& zeros,
                   Floats* out) {
  if (bits == 8) decode<8>(codes, inputs, grid, zeros, out);
  if (bits == 4) decode<4>(codes, inputs, grid, zeros, out);
  if (bits == 3) decode<3>(codes, inputs, grid, zeros, out);
  if (bits == 2) decode<2>(codes, inputs, grid, zeros, out);
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
