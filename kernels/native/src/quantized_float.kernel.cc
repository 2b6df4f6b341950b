// Products of packed weights and float rows.
//
//     out[m, n] = sum_g scale[g, n] * sum_{k in g} x[m, k] * grid(code[k, n])
//
// For one or two rows the weights go straight into the products; for more, a chunk of them is decoded once into the
// first-level cache.
#include "quantized_floats.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int MOST_ROWS = VARAX_LEVEL == 2 ? 8 : 2;

struct Chunk {
  const uint8_t* codes;   // of the first tile
  int64_t tile_bytes;     // from tile to tile
  const Floats* weights;  // [tiles][inputs]: decoded
  int64_t inputs;
  const float* x;         // [rows][inputs]
  const Floats* zeros;    // [COLUMNS]
  const Floats* scales;   // [COLUMNS]
  Floats* totals;         // [rows][COLUMNS]
};

template <int MR, int NT>
inline void add(const Chunk& c, int64_t row, int64_t tile, Floats (&sum)[MR][NT]) {
  for (int m = 0; m < MR; ++m)
    for (int t = 0; t < NT; ++t) {
      Floats& total = c.totals[(row + m) * COLUMNS + tile + t];
      total = total + c.scales[tile + t] * sum[m][t];
    }
}

// `x @ weights`, decoded before.
template <int MR, int NT>
void multiply(const Chunk& c, int64_t row, int64_t tile) {
  Floats sum[MR][NT] = {};
  const Floats* w = c.weights + tile * c.inputs;
  const float* x = c.x + row * c.inputs;
  for (int64_t k = 0; k < c.inputs; ++k) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
      for (int t = 0; t < NT; ++t) sum[m][t] += x[m * c.inputs + k] * w[t * c.inputs + k];
    }
  }
  add<MR, NT>(c, row, tile, sum);
}

// The same, decoding on the way.
template <int BITS, int MR, int NT>
void multiply_codes(const Chunk& c, const Grid& grid, int64_t row, int64_t tile) {
  constexpr int quads = quads_of_unit(BITS);
  Floats sum[MR][NT] = {};
  const uint8_t* codes = c.codes + tile * c.tile_bytes;
  const float* x = c.x + row * c.inputs;
  for (int64_t u = 0; u < c.inputs / (4 * quads); ++u, codes += bytes_of_unit(BITS)) {
#if VARAX_LEVEL > 0
    for (int t = 0; t < NT; ++t) _mm_prefetch((const char*)codes + t * c.tile_bytes + 1024, _MM_HINT_T0);
#endif
#pragma GCC unroll 4
    for (int q = 0; q < quads; ++q, x += 4) {
#pragma GCC unroll 4
      for (int t = 0; t < NT; ++t) {
        Floats w[4];
        decode_quad<BITS>(codes + t * c.tile_bytes, q, grid, c.zeros[tile + t], w);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) sum[m][t] += x[m * c.inputs + i] * w[i];
      }
    }
  }
  add<MR, NT>(c, row, tile, sum);
}

template <int MR>
int64_t multiply_rows(const Chunk& c, int64_t row, int64_t rows, int64_t tiles) {
  for (; row + MR <= rows; row += MR) {
    int64_t tile = 0;
    for (; tile + 2 <= tiles; tile += 2) multiply<MR, 2>(c, row, tile);
    if (tile < tiles) multiply<MR, 1>(c, row, tile);
  }
  return row;
}

template <int BITS>
void chunk_product(const Chunk& chunk, const Grid& grid, int64_t rows, int64_t tiles, Floats* decoded) {
  constexpr int DIRECT = VARAX_LEVEL == 2 ? 4 : 1;  // rows, and tiles
  if (rows <= 2 && VARAX_LEVEL > 0) {
    for (int64_t row = 0; row < rows; ++row) {
      int64_t tile = 0;
      for (; tile + DIRECT <= tiles; tile += DIRECT) multiply_codes<BITS, 1, DIRECT>(chunk, grid, row, tile);
      for (; tile < tiles; ++tile) multiply_codes<BITS, 1, 1>(chunk, grid, row, tile);
    }
    return;
  }
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    const int64_t here = tiles - tile < 2 ? tiles - tile : 2;
    for (int64_t t = 0; t < here; ++t)
      decode<BITS>(chunk.codes + (tile + t) * chunk.tile_bytes, chunk.inputs, grid, chunk.zeros[tile + t],
                   decoded + t * chunk.inputs);
    Chunk part = chunk;
    part.weights = decoded;
    part.scales += tile;
    part.totals += tile;
    int64_t row = MOST_ROWS >= 8 ? multiply_rows<MOST_ROWS >= 8 ? 8 : 1>(part, 0, rows, here) : 0;
    row = MOST_ROWS >= 4 ? multiply_rows<MOST_ROWS >= 4 ? 4 : 1>(part, row, rows, here) : row;
    row = multiply_rows<2>(part, row, rows, here);
    multiply_rows<1>(part, row, rows, here);
  }
}

}  // namespace

void float_product(const FloatProduct& p, int64_t first_row, int64_t first_tile) {
  const PackedWeights& w = p.w;
  const int64_t rows = p.rows - first_row < ROWS ? p.rows - first_row : ROWS;
  const int64_t tiles = w.tiles - first_tile < COLUMNS ? w.tiles - first_tile : COLUMNS;
  const int64_t most = w.outputs - first_tile * TILE;
  const int64_t columns = most < COLUMNS * TILE ? most : COLUMNS * TILE;
  Floats decoded[2 * SHORT_CHUNK], totals[ROWS * COLUMNS], zeros[COLUMNS], scales[COLUMNS];
  std::memset(totals, 0, sizeof(Floats) * rows * COLUMNS);
  std::memset(scales, 0, sizeof scales);
  for (int64_t t = 0; t < COLUMNS; ++t) zeros[t] = Floats{} + (w.bits == 8 ? 128.0f : 0.0f);
  const Grid grid(p.table);

  for (int64_t first = 0, c = 0; first < w.padded; first += p.chunk, ++c) {
    const int64_t inputs = w.padded - first < p.chunk ? w.padded - first : p.chunk;
    if (w.group || c == 0) {
      std::memcpy(scales, w.scales + c * w.outputs + first_tile * TILE, columns * sizeof(float));
      if (w.zeros) {
        const uint8_t* from = w.zeros + c * w.outputs + first_tile * TILE;
        for (int64_t n = 0; n < columns; ++n) ((float*)zeros)[n] = from[n];
      }
    }
    const uint8_t* codes = w.packed + first_tile * w.tile_bytes() + first * TILE * w.bits / 8;
    const float* x = p.x + first * p.rows + first_row * inputs;
    Chunk chunk{codes, w.tile_bytes(), nullptr, inputs, x, zeros, scales, totals};
    if (w.bits == 8) chunk_product<8>(chunk, grid, rows, tiles, decoded);
    if (w.bits == 4) chunk_product<4>(chunk, grid, rows, tiles, decoded);
    if (w.bits == 3) chunk_product<3>(chunk, grid, rows, tiles, decoded);
    if (w.bits == 2) chunk_product<2>(chunk, grid, rows, tiles, decoded);
  }
  for (int64_t m = 0; m < rows; ++m)
    std::memcpy(p.out + (first_row + m) * w.outputs + first_tile * TILE, totals + m * COLUMNS, columns * sizeof(float));
}

}  // namespace VARAX_ISA
}  // namespace varax
