// Products of packed weights and 8-bit rows, exact in integers.
//
//     out[m, n] = step[m] * sum_g scale[g, n] * (sum_{k in g} (code[k, n] - zero[g, n]) * q[m, k])
//
// The inner sum is an int32; the outer one runs over g in order, each operation rounded once. So the
// result has the same bits on every instruction set. The codes are unsigned and the rows signed, as
// vpdpbusd wants them, so the zero points cost one product with the sums of the rows' groups.
//
// Where the multiply-add of bytes saturates at 16 bits (AVX2), codes c above 15 are split into c - 128 and
// 128: |c - 128| * 127 * 2 < 2^15.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include "quantized_bytes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

#if VARAX_LEVEL == 2
constexpr int MOST_ROWS = 8;
constexpr int32_t SHIFT = 0;
using Sum = __m512i;
inline Sum start(const Ints& v) { return (__m512i)v; }
inline Ints finish(const Sum& s) { return (Ints)s; }
template <bool>
inline void add_products(Sum& sum, Bytes codes, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  // As an instruction, not the intrinsic: GCC 12 copies every sum to another register and back otherwise.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(_mm512_set1_epi32(four)));
}
#elif VARAX_LEVEL == 1
constexpr int MOST_ROWS = 4;
constexpr int32_t SHIFT = 128;
struct Sum {
  __m256i half[2];
};
inline Sum start(const Ints& v) {
  Sum s;
  std::memcpy(&s, &v, 64);
  return s;
}
inline Ints finish(const Sum& s) {
  Ints v;
  std::memcpy(&v, &s, 64);
  return v;
}
template <bool SMALL>
inline void add_products(Sum& sum, const Bytes& codes, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i row = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  for (int h = 0; h < 2; ++h) {
    __m256i pairs;
    if constexpr (SMALL) {
      pairs = _mm256_maddubs_epi16(codes.half[h], row);
    } else {
      const __m256i c = _mm256_xor_si256(codes.half[h], _mm256_set1_epi8(-128));
      pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(row, c));
    }
    sum.half[h] = _mm256_add_epi32(sum.half[h], _mm256_madd_epi16(pairs, ones));
  }
}
#else
constexpr int MOST_ROWS = 1;
constexpr int32_t SHIFT = 0;
using Sum = Ints;
inline Sum start(const Ints& v) { return v; }
inline Ints finish(const Sum& s) { return s; }
template <bool>
inline void add_products(Sum& sum, const Bytes& codes, const int8_t* x) {
  for (int n = 0; n < 16; ++n) {
    const uint8_t* c = codes.b + 4 * n;
    sum[n] += c[0] * x[0] + c[1] * x[1] + c[2] * x[2] + c[3] * x[3];
  }
}
#endif

// What the products of one chunk of inputs read and add to.
struct Chunk {
  const uint8_t* codes;  // of the first tile
  int64_t tile_bytes;    // from tile to tile
  int64_t inputs;
  const int8_t* x;       // [rows][inputs]
  const int32_t* sums;   // [rows]
  const Ints* zeros;     // [COLUMNS]
  const Floats* scales;  // [COLUMNS]; null: integers are added up, not floats
  Floats* totals;        // [rows][COLUMNS]
};

// SMALL: codes are at most 15.
template <int BITS, bool SMALL, int MR, int NT>
void multiply(const Chunk& c, int64_t row, int64_t tile) {
  constexpr int quads = quads_of_unit(BITS);
  Sum sum[MR][NT];
  for (int m = 0; m < MR; ++m)
    for (int t = 0; t < NT; ++t)
      sum[m][t] = start(((SMALL ? 0 : SHIFT) - c.zeros[tile + t]) * c.sums[row + m]);
  const uint8_t* codes = c.codes + tile * c.tile_bytes;
  const int8_t* x = c.x + row * c.inputs;
  for (int64_t u = 0; u < c.inputs / (4 * quads); ++u, codes += bytes_of_unit(BITS)) {
#if VARAX_LEVEL > 0
    if (MR <= 2)
      for (int t = 0; t < NT; ++t) _mm_prefetch((const char*)codes + t * c.tile_bytes + 1024, _MM_HINT_T0);
#endif
#pragma GCC unroll 2
    for (int q = 0; q < quads; ++q, x += 4) {
      Bytes v[NT];
      for (int t = 0; t < NT; ++t) v[t] = quad_of_unit<BITS>(codes + t * c.tile_bytes, q);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int t = 0; t < NT; ++t) add_products<SMALL>(sum[m][t], v[t], x + m * c.inputs);
    }
  }
  for (int m = 0; m < MR; ++m) {
    Floats* total = c.totals + (row + m) * COLUMNS + tile;
    for (int t = 0; t < NT; ++t) {
      Ints exact = finish(sum[m][t]);
      if (c.scales) {
        total[t] = total[t] + c.scales[tile + t] * __builtin_convertvector(exact, Floats);
      } else {
        total[t] = (Floats)((Ints)total[t] + exact);
      }
    }
  }
}

template <int BITS, bool SMALL, int MR, int NT>
int64_t multiply_tiles(const Chunk& c, int64_t row, int64_t tile, int64_t tiles) {
  for (; tile + NT <= tiles; tile += NT) multiply<BITS, SMALL, MR, NT>(c, row, tile);
  return tile;
}

template <int BITS, bool SMALL, int MR>
void multiply_rows(const Chunk& c, int64_t row, int64_t tiles) {
  int64_t tile = 0;
  if (VARAX_LEVEL == 2 && MR < 8) tile = multiply_tiles<BITS, SMALL, MR, VARAX_LEVEL == 2 ? 4 : 1>(c, row, tile, tiles);
  if (VARAX_LEVEL == 2) tile = multiply_tiles<BITS, SMALL, MR, VARAX_LEVEL == 2 ? 2 : 1>(c, row, tile, tiles);
  multiply_tiles<BITS, SMALL, MR, 1>(c, row, tile, tiles);
}

template <int BITS, bool SMALL>
void multiply_all(const Chunk& c, int64_t rows, int64_t tiles) {
  int64_t row = 0;
  for (; MOST_ROWS >= 8 && row + 8 <= rows; row += 8) multiply_rows<BITS, SMALL, MOST_ROWS >= 8 ? 8 : 1>(c, row, tiles);
  for (; MOST_ROWS >= 4 && row + 4 <= rows; row += 4) multiply_rows<BITS, SMALL, MOST_ROWS >= 4 ? 4 : 1>(c, row, tiles);
  for (; MOST_ROWS >= 2 && row + 2 <= rows; row += 2) multiply_rows<BITS, SMALL, MOST_ROWS >= 2 ? 2 : 1>(c, row, tiles);
  for (; row < rows; ++row) multiply_rows<BITS, SMALL, 1>(c, row, tiles);
}

}  // namespace

void quantize_row(const QuantizedRows& to, const float* x, int64_t row) {
  // As integers, magnitudes are ordered as floats are, and NaN comes last.
  int32_t most = 0;
  for (int64_t k = 0; k < to.inputs; ++k) {
    int32_t bits;
    std::memcpy(&bits, x + k, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float size;
  std::memcpy(&size, &most, 4);
  const float step = size * (1.0f / 127.0f);
  to.steps[row] = step;
  const bool finite = step > 0 && size <= 3.4028234e38f;
  for (int64_t first = 0, c = 0; first < to.padded; first += to.chunk, ++c) {
    const int64_t inputs = to.padded - first < to.chunk ? to.padded - first : to.chunk;
    const int64_t there = to.inputs - first < inputs ? to.inputs - first : inputs;
    int8_t* values = to.values + first * to.rows + row * inputs;
    std::memset(values, 0, inputs);
    int32_t sum = 0;
    if (finite) {
      const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers, ties to even
      for (int64_t k = 0; k < there; ++k) {
        float v = (x[first + k] / step + magic) - magic;
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        int32_t q = (int32_t)v;
        values[k] = (int8_t)q;
        sum += q;
      }
    }
    to.sums[c * to.rows + row] = sum;
  }
}

void integer_product(const IntegerProduct& p, int64_t first_row, int64_t first_tile) {
  const PackedWeights& w = p.w;
  const int64_t rows = p.x.rows - first_row < ROWS ? p.x.rows - first_row : ROWS;
  const int64_t tiles = w.tiles - first_tile < COLUMNS ? w.tiles - first_tile : COLUMNS;
  const int64_t columns = w.outputs - first_tile * TILE < COLUMNS * TILE ? w.outputs - first_tile * TILE : COLUMNS * TILE;
  alignas(64) uint8_t bytes[COLUMNS * TILE * CHUNK];
  Floats totals[ROWS * COLUMNS];
  std::memset(totals, 0, sizeof(Floats) * rows * COLUMNS);
  Ints zeros[COLUMNS];
  Floats scales[COLUMNS];
  std::memset(scales, 0, sizeof scales);
  for (int64_t t = 0; t < COLUMNS; ++t) zeros[t] = Ints{} + (p.table ? 128 : 1 << (w.bits - 1));
  const bool direct = w.bits == 8 || (w.bits == 4 && !p.table && (rows <= 2 || rows == 4 || rows == 8));

  for (int64_t first = 0, c = 0; first < w.padded; first += p.x.chunk, ++c) {
    const int64_t inputs = w.padded - first < p.x.chunk ? w.padded - first : p.x.chunk;
    if (w.group || c == 0) {
      std::memcpy(scales, w.scales + c * w.outputs + first_tile * TILE, columns * sizeof(float));
      if (w.zeros) {
        const uint8_t* from = w.zeros + c * w.outputs + first_tile * TILE;
        for (int64_t n = 0; n < columns; ++n) ((int32_t*)zeros)[n] = from[n];
      }
    }
    const uint8_t* packed = w.packed + first_tile * w.tile_bytes() + first * TILE * w.bits / 8;
    Chunk chunk{packed, w.tile_bytes(), inputs, p.x.values + first * p.x.rows + first_row * inputs,
                p.x.sums + c * p.x.rows + first_row, zeros, w.group ? scales : nullptr, totals};
    if (!direct) {
      for (int64_t t = 0; t < tiles; ++t)
        expand(w.bits, packed + t * w.tile_bytes(), inputs, p.table, bytes + t * inputs * TILE);
      chunk.codes = bytes;
      chunk.tile_bytes = inputs * TILE;
    }
    constexpr bool small = VARAX_LEVEL == 1;  // elsewhere it makes no difference
    if (direct && w.bits == 4) {
      multiply_all<4, small>(chunk, rows, tiles);
    } else if (small && w.bits < 8 && !p.table) {
      multiply_all<8, small>(chunk, rows, tiles);
    } else {
      multiply_all<8, false>(chunk, rows, tiles);
    }
  }

  for (int64_t m = 0; m < rows; ++m) {
    const float factor = p.x.steps[first_row + m] * p.table_step;
    Floats line[COLUMNS];
    for (int64_t t = 0; t < COLUMNS; ++t) {
      Floats total = totals[m * COLUMNS + t];
      if (!w.group) total = scales[t] * __builtin_convertvector((Ints)total, Floats);
      line[t] = total * factor;
    }
    std::memcpy(p.out + (first_row + m) * w.outputs + first_tile * TILE, line, columns * sizeof(float));
  }
}

}  // namespace VARAX_ISA
}  // namespace varax
