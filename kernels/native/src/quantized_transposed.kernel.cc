// Products of float rows with the transpose of packed weights: the derivative in the rows.
//
//     out[m, k] = sum_n (x[m, n] * scale[g(k), n]) * grid(code[k, n])
//
// A task owns a chunk of inputs and goes over all outputs, two tiles at a time: it decodes them, turns them so that
// inputs are the lanes, and adds the products of the 32 outputs to the totals. So sums are short, and in one order.
#include "quantized_floats.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int MOST_ROWS = VARAX_LEVEL == 2 ? 8 : 2;
constexpr int64_t VECTORS = SHORT_CHUNK / TILE;  // of the inputs of a chunk
constexpr int64_t OUTPUTS = 2 * TILE;

// 16 x 16 transposed, in log2(16) exchanges of ever larger blocks.
#if VARAX_LEVEL == 2
template <int S>
inline void exchange(Floats* r) {
  Ints low, high;
  for (int j = 0; j < 16; ++j) {
    low[j] = j & S ? 16 + j - S : j;
    high[j] = j & S ? 16 + j : j + S;
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & S) continue;
    Floats a = r[i], b = r[i + S];
    r[i] = (Floats)_mm512_permutex2var_ps((__m512)a, (__m512i)low, (__m512)b);
    r[i + S] = (Floats)_mm512_permutex2var_ps((__m512)a, (__m512i)high, (__m512)b);
  }
}
inline void transpose(const Floats* from, Floats* to, int64_t stride) {
  Floats r[16];
  for (int i = 0; i < 16; ++i) r[i] = from[i];
  exchange<1>(r);
  exchange<2>(r);
  exchange<4>(r);
  exchange<8>(r);
  for (int i = 0; i < 16; ++i) to[i * stride] = r[i];
}
#else
inline void transpose(const Floats* from, Floats* to, int64_t stride) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) ((float*)(to + i * stride))[j] = ((const float*)(from + j))[i];
}
#endif

template <int MR>
int64_t multiply_rows(const Floats* w, const float* x, int64_t row, int64_t rows, int64_t vectors, Floats* totals) {
  for (; row + MR <= rows; row += MR) {
    for (int64_t v = 0; v < vectors; v += 2) {  // `vectors` is even
      Floats sum[MR][2] = {};
      for (int64_t n = 0; n < OUTPUTS; ++n) {
        const Floats *here = w + n * VECTORS + v;
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const float factor = x[(row + m) * OUTPUTS + n];
          sum[m][0] += factor * here[0];
          sum[m][1] += factor * here[1];
        }
      }
      for (int m = 0; m < MR; ++m) {
        totals[(row + m) * VECTORS + v] += sum[m][0];
        totals[(row + m) * VECTORS + v + 1] += sum[m][1];
      }
    }
  }
  return row;
}

}  // namespace

void transposed_product(const TransposedProduct& p, int64_t first_row, int64_t c) {
  const PackedWeights& w = p.w;
  const int64_t rows = p.rows - first_row < ROWS ? p.rows - first_row : ROWS;
  const int64_t first = c * p.chunk;
  const int64_t inputs = w.padded - first < p.chunk ? w.padded - first : p.chunk;  // a multiple of 32
  const int64_t there = w.inputs - first < inputs ? w.inputs - first : inputs;
  const int64_t vectors = inputs / TILE, group = w.group ? c : 0;
  Floats decoded[SHORT_CHUNK], turned[OUTPUTS * VECTORS], totals[ROWS * VECTORS];
  float scaled[ROWS * OUTPUTS];
  std::memset(totals, 0, sizeof(Floats) * rows * VECTORS);
  Floats zeros = Floats{} + (w.bits == 8 ? 128.0f : 0.0f);
  const Grid grid(p.table);

  for (int64_t tile = 0; tile < w.tiles; tile += 2) {
    std::memset(scaled, 0, sizeof scaled);
    for (int64_t t = 0; t < 2; ++t) {
      const int64_t column = (tile + t) * TILE;
      const int64_t columns = w.outputs - column < TILE ? w.outputs - column : TILE;
      if (columns <= 0) {
        for (int64_t i = 0; i < TILE * VECTORS; ++i) turned[t * TILE * VECTORS + i] = Floats{};
        continue;
      }
      const int64_t at = group * w.outputs + column;
      if (w.zeros)
        for (int64_t n = 0; n < columns; ++n) ((float*)&zeros)[n] = w.zeros[at + n];
      const uint8_t* codes = w.packed + (tile + t) * w.tile_bytes() + first * TILE * w.bits / 8;
#if VARAX_LEVEL > 0
      for (int64_t b = 0; b < inputs * TILE * w.bits / 8; b += 64)
        _mm_prefetch((const char*)codes + 2 * w.tile_bytes() + b, _MM_HINT_T0);
#endif
      decode(w.bits, codes, inputs, grid, zeros, decoded);
      for (int64_t v = 0; v < vectors; ++v)
        transpose(decoded + v * TILE, turned + t * TILE * VECTORS + v, VECTORS);
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t n = 0; n < columns; ++n)
          scaled[m * OUTPUTS + t * TILE + n] = p.x[(first_row + m) * w.outputs + column + n] * w.scales[at + n];
    }
    int64_t row = MOST_ROWS >= 8 ? multiply_rows<MOST_ROWS >= 8 ? 8 : 1>(turned, scaled, 0, rows, vectors, totals) : 0;
    row = multiply_rows<2>(turned, scaled, row, rows, vectors, totals);
    multiply_rows<1>(turned, scaled, row, rows, vectors, totals);
  }
  for (int64_t m = 0; m < rows && there > 0; ++m)
    std::memcpy(p.out + (first_row + m) * w.inputs + first, totals + m * VECTORS, there * sizeof(float));
}

}  // namespace VARAX_ISA
}  // namespace varax
