// Products with packed weights: what the loops are told. The layout is that of kernels/quant/layout.py.
#pragma once

#include "varax.h"

namespace varax {

constexpr int64_t TILE = 16;       // outputs of a tile
constexpr int64_t COLUMNS = 4;     // tiles of a task
constexpr int64_t ROWS = 64;       // rows of a task
constexpr int64_t CHUNK = 256;     // inputs at a time, where there are no groups: of integers
constexpr int64_t SHORT_CHUNK = 128;  // of floats, whose sums are better short

struct PackedWeights {
  const uint8_t* packed;   // [tiles, units, bytes of a unit]
  const float* scales;     // [groups, outputs]
  const uint8_t* zeros;    // [groups, outputs], or null: the middle code
  const float* codebook;   // [2 ** bits], or null
  int64_t bits, group, inputs, padded, outputs, tiles;

  int64_t tile_bytes() const { return padded * TILE * bits / 8; }
};

// Rows of integers: x[k] ~ step * values[k].
struct QuantizedRows {
  int8_t* values;  // [chunks][rows][inputs of a chunk], padded with zeros
  int32_t* sums;   // [chunks][rows]
  float* steps;    // [rows]
  int64_t rows, inputs, padded, chunk;
};

struct IntegerProduct {
  PackedWeights w;
  QuantizedRows x;
  const uint8_t* table;  // [16] codebook in units of table_step, plus 128; or null
  float table_step;
  float* out;            // [rows, outputs]
};

struct FloatProduct {
  PackedWeights w;
  const float* x;      // [chunks][rows][inputs of a chunk], padded with zeros
  const float* table;  // [16] the grid's values by code, repeated; not used with 8 bits
  int64_t rows, chunk;
  float* out;          // [rows, outputs]
};

// The derivative in the rows: out[m, k] = sum_n x[m, n] * W[k, n].
struct TransposedProduct {
  PackedWeights w;
  const float* x;      // [rows, outputs]
  const float* table;  // as in FloatProduct
  int64_t rows, chunk;
  float* out;          // [rows, inputs]
};

}  // namespace varax

// A task is ROWS rows, and COLUMNS tiles or one chunk of inputs.
VARAX_DECLARE(void quantize_row(const QuantizedRows& to, const float* x, int64_t row);
              void integer_product(const IntegerProduct& p, int64_t row, int64_t tile);
              void float_product(const FloatProduct& p, int64_t row, int64_t tile);
              void transposed_product(const TransposedProduct& p, int64_t row, int64_t chunk);)
