// Handlers of products with packed weights (kernels/quant).
#include "quantized.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "handler.h"

namespace {

using varax::PackedWeights;

constexpr int64_t SMALL = int64_t{1} << 18;  // products that are not worth a second thread

ffi::Error wrong(const char* what) { return ffi::Error::InvalidArgument(what); }

template <typename Task>
void in_parallel(ffi::ThreadPool& pool, int64_t work, int64_t count, const Task& task) {
  if (work < SMALL) {
    for (int64_t i = 0; i < count; ++i) task(i);
  } else {
    varax::parallel(pool, count, task);
  }
}

// x[rows, inputs] by chunks of inputs, padded with zeros.
void by_chunks(const float* x, int64_t row, int64_t rows, int64_t inputs, int64_t padded, int64_t chunk, float* to) {
  for (int64_t first = 0; first < padded; first += chunk) {
    const int64_t size = std::min(chunk, padded - first);
    const int64_t there = std::max<int64_t>(0, std::min(size, inputs - first));
    float* out = to + first * rows + row * size;
    std::memcpy(out, x + row * inputs + first, there * sizeof(float));
    std::memset(out + there, 0, (size - there) * sizeof(float));
  }
}

struct Grids {
  alignas(64) float floats[16] = {};
  alignas(64) uint8_t bytes[16] = {};
  float step = 1;

  explicit Grids(const PackedWeights& w) {
    if (w.bits == 8) return;
    const int count = 1 << w.bits;
    for (int i = 0; i < 16; ++i) {
      const int c = i % count;
      floats[i] = w.codebook ? w.codebook[c] : w.zeros ? c : c - count / 2;
    }
    if (!w.codebook) return;
    float size = 0;
    for (int i = 0; i < count; ++i) size = std::max(size, std::abs(w.codebook[i]));
    step = size * (1.0f / 127.0f);
    for (int i = 0; i < 16; ++i) {
      const float v = step > 0 ? std::nearbyint(floats[i] / step) : 0.0f;
      bytes[i] = static_cast<uint8_t>(128 + static_cast<int>(std::min(127.0f, std::max(-127.0f, v))));
    }
  }
};

void product(ffi::ThreadPool& pool, const PackedWeights& w, const float* x, int64_t rows, bool integer, float* out) {
  const Grids grids(w);
  const int64_t row_blocks = (rows + varax::ROWS - 1) / varax::ROWS;
  const int64_t tile_blocks = (w.tiles + varax::COLUMNS - 1) / varax::COLUMNS;
  const int64_t tasks = row_blocks * tile_blocks, work = rows * w.padded * w.tiles * varax::TILE;
  const int64_t chunk = w.group ? w.group : integer ? varax::CHUNK : varax::SHORT_CHUNK;
  const int64_t chunks = (w.padded + chunk - 1) / chunk;
  if (integer) {
    std::vector<float> steps(rows);
    std::vector<int32_t> sums(chunks * rows);
    std::unique_ptr<int8_t[]> values(new int8_t[w.padded * rows]);
    const varax::QuantizedRows q{values.get(), sums.data(), steps.data(), rows, w.inputs, w.padded, chunk};
    const auto quantize = VARAX_PICK(quantize_row);
    in_parallel(pool, rows > 1 ? work : 0, rows, [&](int64_t m) { quantize(q, x + m * w.inputs, m); });
    const varax::IntegerProduct p{w, q, w.codebook ? grids.bytes : nullptr, grids.step, out};
    const auto run = VARAX_PICK(integer_product);
    in_parallel(pool, work, tasks, [&](int64_t i) {
      run(p, i / tile_blocks * varax::ROWS, i % tile_blocks * varax::COLUMNS);
    });
  } else {
    std::unique_ptr<float[]> rows_by_chunks(new float[w.padded * rows]);
    in_parallel(pool, rows > 8 ? work : 0, rows, [&](int64_t m) {
      by_chunks(x, m, rows, w.inputs, w.padded, chunk, rows_by_chunks.get());
    });
    const varax::FloatProduct p{w, rows_by_chunks.get(), grids.floats, rows, chunk, out};
    const auto run = VARAX_PICK(float_product);
    in_parallel(pool, work, tasks, [&](int64_t i) {
      run(p, i / tile_blocks * varax::ROWS, i % tile_blocks * varax::COLUMNS);
    });
  }
}

void transposed(ffi::ThreadPool& pool, const PackedWeights& w, const float* x, int64_t rows, float* out) {
  const Grids grids(w);
  const int64_t chunk = w.group ? w.group : varax::SHORT_CHUNK;
  const int64_t row_blocks = (rows + varax::ROWS - 1) / varax::ROWS, chunks = (w.padded + chunk - 1) / chunk;
  const varax::TransposedProduct p{w, x, grids.floats, rows, chunk, out};
  const auto run = VARAX_PICK(transposed_product);
  in_parallel(pool, rows * w.padded * w.tiles * varax::TILE, row_blocks * chunks,
              [&](int64_t i) { run(p, i / chunks * varax::ROWS, i % chunks); });
}

// Operands with a batch axis are a whole matrix further for each element of the batch; shared ones are not.
// `transpose`: x is [rows, outputs], and the result [rows, inputs].
ffi::Error quantized_matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> packed,
                            ffi::Buffer<ffi::F32> scales, ffi::Buffer<ffi::U8> zeros,
                            ffi::Buffer<ffi::F32> codebook, ffi::ResultBuffer<ffi::F32> out, int64_t batch,
                            int64_t rows, int64_t inputs, int64_t outputs, int64_t bits, int64_t group,
                            bool integer, bool transpose, ffi::Span<const int64_t> batched) {
  if (bits != 8 && bits != 4 && bits != 3 && bits != 2) return wrong("quantized_matmul: bits");
  if (group != 0 && group != 32 && group != 64 && group != 128) return wrong("quantized_matmul: group");
  if (batch < 0 || rows < 0 || inputs < 0 || outputs < 0 || batched.size() != 5) {
    return wrong("quantized_matmul: sizes");
  }
  const int64_t step = group ? group : 64;
  const int64_t groups = group ? (inputs + group - 1) / group : 1;
  PackedWeights w{};
  w.bits = bits, w.group = group, w.inputs = inputs, w.outputs = outputs;
  w.padded = (inputs + step - 1) / step * step;
  w.tiles = (outputs + varax::TILE - 1) / varax::TILE;
  const int64_t zero_count = zeros.element_count() ? groups * outputs : 0;
  const int64_t code_count = codebook.element_count() ? int64_t{1} << bits : 0;
  const int64_t results = rows * (transpose ? inputs : outputs);
  const int64_t sizes[5] = {rows * (transpose ? outputs : inputs), w.tiles * w.tile_bytes(), groups * outputs,
                            zero_count, code_count};
  const size_t given[5] = {x.element_count(), packed.element_count(), scales.element_count(),
                           zeros.element_count(), codebook.element_count()};
  int64_t strides[5];
  for (int i = 0; i < 5; ++i) {
    strides[i] = batched[i] ? sizes[i] : 0;
    if (static_cast<int64_t>(given[i]) != sizes[i] * (batched[i] ? batch : 1)) {
      return wrong("quantized_matmul: an operand's size");
    }
  }
  if (static_cast<int64_t>(out->element_count()) != batch * results) {
    return wrong("quantized_matmul: the result's size");
  }
  if (code_count && (bits == 8 || zero_count)) return wrong("quantized_matmul: codebook");
  for (int64_t b = 0; b < batch && results > 0; ++b) {
    w.packed = packed.typed_data() + b * strides[1];
    w.scales = scales.typed_data() + b * strides[2];
    w.zeros = zero_count ? zeros.typed_data() + b * strides[3] : nullptr;
    w.codebook = code_count ? codebook.typed_data() + b * strides[4] : nullptr;
    const float* from = x.typed_data() + b * strides[0];
    float* to = out->typed_data() + b * results;
    if (transpose) {
      transposed(pool, w, from, rows, to);
    } else {
      product(pool, w, from, rows, integer, to);
    }
  }
  return ffi::Error::Success();
}

ffi::Error outlier_matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> starts,
                          ffi::Buffer<ffi::S32> rows, ffi::Buffer<ffi::F32> values,
                          ffi::ResultBuffer<ffi::F32> out, int64_t inputs) {
  const int64_t outputs = static_cast<int64_t>(starts.element_count()) - 1;
  const int64_t entries = rows.element_count();
  if (outputs < 0 || inputs < 0 || static_cast<int64_t>(values.element_count()) != entries) {
    return wrong("outlier_matmul: sizes");
  }
  const int64_t count = outputs ? static_cast<int64_t>(out->element_count()) / outputs : 0;
  if (count * outputs != static_cast<int64_t>(out->element_count()) ||
      count * inputs != static_cast<int64_t>(x.element_count()) * (outputs ? 1 : 0)) {
    return wrong("outlier_matmul: sizes");
  }
  const int32_t *first = starts.typed_data(), *row = rows.typed_data();
  for (int64_t n = 0; n < outputs; ++n) {
    if (first[n] < 0 || first[n] > first[n + 1] || first[n + 1] > entries) return wrong("outlier_matmul: starts");
  }
  for (int64_t e = 0; e < entries; ++e) {
    if (row[e] < 0 || row[e] >= inputs) return wrong("outlier_matmul: an outlier's row");
  }
  const float* value = values.typed_data();
  in_parallel(pool, count > 1 ? count * entries : 0, count, [&](int64_t m) {
    const float* from = x.typed_data() + m * inputs;
    float* to = out->typed_data() + m * outputs;
    for (int64_t n = 0; n < outputs; ++n) {
      float sum = 0;
      for (int32_t e = first[n]; e < first[n + 1]; ++e) sum += from[row[e]] * value[e];
      to[n] = sum;
    }
  });
  return ffi::Error::Success();
}

}  // namespace

VARAX_HANDLER(varax_quantized_matmul_f32, quantized_matmul,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::Buffer<ffi::F32>>()
                  .Arg<ffi::Buffer<ffi::U8>>()
                  .Arg<ffi::Buffer<ffi::F32>>()
                  .Arg<ffi::Buffer<ffi::U8>>()
                  .Arg<ffi::Buffer<ffi::F32>>()
                  .Ret<ffi::Buffer<ffi::F32>>()
                  .Attr<int64_t>("batch")
                  .Attr<int64_t>("rows")
                  .Attr<int64_t>("inputs")
                  .Attr<int64_t>("outputs")
                  .Attr<int64_t>("bits")
                  .Attr<int64_t>("group")
                  .Attr<bool>("integer")
                  .Attr<bool>("transpose")
                  .Attr<ffi::Span<const int64_t>>("batched"));

VARAX_HANDLER(varax_outlier_matmul_f32, outlier_matmul,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::Buffer<ffi::F32>>()
                  .Arg<ffi::Buffer<ffi::S32>>()
                  .Arg<ffi::Buffer<ffi::S32>>()
                  .Arg<ffi::Buffer<ffi::F32>>()
                  .Ret<ffi::Buffer<ffi::F32>>()
                  .Attr<int64_t>("inputs"));
