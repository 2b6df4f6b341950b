// FFI handlers of covariance_matmul: a batch of problems, each cut into rows.
#include "covariance_matmul.h"

#include <vector>

#include "gp_profile_kinds.h"
#include "handler.h"

namespace varax {
namespace {

// An operand with two trailing axes (or none), and the batch axis in front if `batched`.
struct Sizes {
  int64_t batch, n, m, d, k;
};

template <ffi::DataType dtype>
bool fits(const ffi::Buffer<dtype>& b, bool batched, const Sizes& s, int64_t rows, int64_t columns) {
  return static_cast<int64_t>(b.element_count()) == (batched ? s.batch : 1) * rows * columns;
}

// Rows of a task: a fixed function of the sizes, large enough to be worth a thread's while.
int64_t rows_of_task(const Sizes& s) {
  int64_t rows = (int64_t{1} << 18) / std::max<int64_t>(1, s.m * (s.d + s.k + 8) / 8);
  return std::min<int64_t>(std::max<int64_t>(64, (rows + 63) / 64 * 64), std::max<int64_t>(64, s.n));
}

template <ffi::DataType dtype, class T>
ffi::Error sizes_of(const ffi::Buffer<dtype>& x, const ffi::Buffer<dtype>& y, const ffi::Buffer<dtype>& b,
                    const ffi::Buffer<dtype>& extra, int64_t kind, int64_t batch, int64_t batched, Sizes* s) {
  auto dx = x.dimensions(), dy = y.dimensions(), db = b.dimensions();
  if (dx.size() < 2 || dy.size() < 2 || db.size() < 2 || kind < 0 || kind >= kKinds || batch < 0)
    return ffi::Error::InvalidArgument("covariance: ranks, kind or batch");
  *s = {batch, dx[dx.size() - 2], dy[dy.size() - 2], dx.back(), db.back()};
  if (!fits(x, batched & 1, *s, s->n, s->d) || !fits(y, batched & 2, *s, s->m, s->d) ||
      !fits(b, batched & 4, *s, s->m, s->k) || !fits(extra, batched & 8, *s, 1, 1))
    return ffi::Error::InvalidArgument("covariance: sizes of the operands do not fit");
  return ffi::Error::Success();
}

template <ffi::DataType dtype, class T>
CovarianceRows<T> problem(const ffi::Buffer<dtype>& x, const ffi::Buffer<dtype>& y,
                          const ffi::Buffer<dtype>& b, const ffi::Buffer<dtype>& extra, int64_t kind,
                          int64_t batched, const Sizes& s, int64_t at) {
  return {x.typed_data() + (batched & 1 ? at * s.n * s.d : 0),
          y.typed_data() + (batched & 2 ? at * s.m * s.d : 0),
          nullptr,
          b.typed_data() + (batched & 4 ? at * s.m * s.k : 0),
          extra.typed_data()[batched & 8 ? at : 0],
          s.m,
          s.d,
          s.k,
          static_cast<int>(kind)};
}

template <ffi::DataType dtype, class T, class Loop, class Space>
ffi::Error run_matmul(Loop loop, Space space, ffi::ThreadPool& pool, ffi::Buffer<dtype> x, ffi::Buffer<dtype> y,
                      ffi::Buffer<dtype> b, ffi::Buffer<dtype> extra, ffi::ResultBuffer<dtype> out,
                      int64_t kind, int64_t batch, int64_t batched) {
  Sizes s;
  ffi::Error error = sizes_of<dtype, T>(x, y, b, extra, kind, batch, batched, &s);
  if (error.failure()) return error;
  if (!fits(*out, true, s, s.n, s.k)) return ffi::Error::InvalidArgument("covariance_matmul: the result's size");
  const int64_t rows = rows_of_task(s), tasks = (s.n + rows - 1) / rows;
  parallel(pool, batch * tasks, [&](int64_t task) {
    const int64_t at = task / tasks, first = task % tasks * rows;
    std::vector<double> work(space(s.d, s.k));
    auto p = problem<dtype, T>(x, y, b, extra, kind, batched, s, at);
    loop(p, first, std::min(first + rows, s.n), out->typed_data() + at * s.n * s.k, work.data());
  });
  return ffi::Error::Success();
}

template <ffi::DataType dtype, class T, class Loop, class Space>
ffi::Error run_gradient(Loop loop, Space space, ffi::ThreadPool& pool, ffi::Buffer<dtype> x,
                        ffi::Buffer<dtype> y, ffi::Buffer<dtype> a, ffi::Buffer<dtype> b,
                        ffi::Buffer<dtype> extra, ffi::ResultBuffer<dtype> dx, ffi::ResultBuffer<dtype> sums,
                        int64_t kind, int64_t batch, int64_t batched) {
  Sizes s;
  ffi::Error error = sizes_of<dtype, T>(x, y, b, extra, kind, batch, batched, &s);
  if (error.failure()) return error;
  if (!fits(a, batched & 16, s, s.n, s.k) || !fits(*dx, true, s, s.n, s.d) || !fits(*sums, true, s, 1, s.d + 2))
    return ffi::Error::InvalidArgument("covariance_gradient: sizes of cotangents or results do not fit");
  const int64_t rows = rows_of_task(s), tasks = (s.n + rows - 1) / rows, width = s.d + 2;
  std::vector<double> partial(batch * tasks * width);
  parallel(pool, batch * tasks, [&](int64_t task) {
    const int64_t at = task / tasks, first = task % tasks * rows;
    std::vector<double> work(space(s.d, s.k));
    auto p = problem<dtype, T>(x, y, b, extra, kind, batched, s, at);
    p.a = a.typed_data() + (batched & 16 ? at * s.n * s.k : 0);
    loop(p, first, std::min(first + rows, s.n), dx->typed_data() + at * s.n * s.d,
         partial.data() + task * width, work.data());
  });
  for (int64_t at = 0; at < batch; ++at)
    for (int64_t q = 0; q < width; ++q) {
      double sum = 0;
      for (int64_t t = 0; t < tasks; ++t) sum += partial[(at * tasks + t) * width + q];
      sums->typed_data()[at * width + q] = static_cast<T>(sum);
    }
  return ffi::Error::Success();
}

#define VARAX_COVARIANCE(dtype, T, suffix)                                                                  \
  ffi::Error matmul_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> x, ffi::Buffer<dtype> y,              \
                             ffi::Buffer<dtype> b, ffi::Buffer<dtype> extra, ffi::ResultBuffer<dtype> out,  \
                             int64_t kind, int64_t batch, int64_t batched) {                                \
    return run_matmul<dtype, T>(VARAX_PICK(covariance_matmul_##suffix),                                     \
                                VARAX_PICK(covariance_workspace_##suffix), pool, x, y, b, extra, out, kind, \
                                batch, batched);                                                            \
  }                                                                                                         \
  ffi::Error gradient_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> x, ffi::Buffer<dtype> y,            \
                               ffi::Buffer<dtype> a, ffi::Buffer<dtype> b, ffi::Buffer<dtype> extra,        \
                               ffi::ResultBuffer<dtype> dx, ffi::ResultBuffer<dtype> sums, int64_t kind,    \
                               int64_t batch, int64_t batched) {                                            \
    return run_gradient<dtype, T>(VARAX_PICK(covariance_gradient_##suffix),                                 \
                                  VARAX_PICK(covariance_workspace_##suffix), pool, x, y, a, b, extra, dx,   \
                                  sums, kind, batch, batched);                                              \
  }
VARAX_COVARIANCE(ffi::F32, float, f32)
VARAX_COVARIANCE(ffi::F64, double, f64)


#define VARAX_MATMUL_BINDING(dtype)  \
  ffi::Ffi::Bind()                   \
      .Ctx<ffi::ThreadPool>()        \
      .Arg<ffi::Buffer<dtype>>()     \
      .Arg<ffi::Buffer<dtype>>()     \
      .Arg<ffi::Buffer<dtype>>()     \
      .Arg<ffi::Buffer<dtype>>()     \
      .Ret<ffi::Buffer<dtype>>()     \
      .Attr<int64_t>("kind")         \
      .Attr<int64_t>("batch")        \
      .Attr<int64_t>("batched")
#define VARAX_GRADIENT_BINDING(dtype) \
  ffi::Ffi::Bind()                    \
      .Ctx<ffi::ThreadPool>()         \
      .Arg<ffi::Buffer<dtype>>()      \
      .Arg<ffi::Buffer<dtype>>()      \
      .Arg<ffi::Buffer<dtype>>()      \
      .Arg<ffi::Buffer<dtype>>()      \
      .Arg<ffi::Buffer<dtype>>()      \
      .Ret<ffi::Buffer<dtype>>()      \
      .Ret<ffi::Buffer<dtype>>()      \
      .Attr<int64_t>("kind")          \
      .Attr<int64_t>("batch")         \
      .Attr<int64_t>("batched")

}  // namespace

VARAX_HANDLER(varax_covariance_matmul_f32, matmul_f32, VARAX_MATMUL_BINDING(ffi::F32));
VARAX_HANDLER(varax_covariance_matmul_f64, matmul_f64, VARAX_MATMUL_BINDING(ffi::F64));
VARAX_HANDLER(varax_covariance_gradient_f32, gradient_f32, VARAX_GRADIENT_BINDING(ffi::F32));
VARAX_HANDLER(varax_covariance_gradient_f64, gradient_f64, VARAX_GRADIENT_BINDING(ffi::F64));

}  // namespace varax
