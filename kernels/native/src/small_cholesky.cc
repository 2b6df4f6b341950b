// FFI handlers of small_cholesky and small_triangular_solve.
#include "small_cholesky.h"

#include <vector>

#include "handler.h"

namespace varax {
namespace {

constexpr int64_t kGroup = 64;  // matrices of a task: a multiple of every vector's width

// Run loop(first, last, work) over the batch.
template <class T, class Loop>
void over_batch(ffi::ThreadPool& pool, int64_t batch, int64_t n, const Loop& loop) {
  const int64_t size = VARAX_PICK(small_workspace)(n);
  parallel(pool, (batch + kGroup - 1) / kGroup, [&](int64_t task) {
    std::vector<T> work(size);
    loop(task * kGroup, std::min((task + 1) * kGroup, batch), work.data());
  });
}

bool fits(size_t count, int64_t batch, int64_t rows, int64_t columns) {
  return static_cast<int64_t>(count) == batch * rows * columns;
}

template <class T, ffi::DataType dtype, class Loop>
ffi::Error run_cholesky(Loop loop, ffi::ThreadPool& pool, ffi::Buffer<dtype> a, ffi::ResultBuffer<dtype> l,
                        int64_t batch) {
  const int64_t n = a.dimensions().size() < 2 ? -1 : a.dimensions().back();
  if (n < 0 || n > kSmall || !fits(a.element_count(), batch, n, n) || !fits(l->element_count(), batch, n, n))
    return ffi::Error::InvalidArgument("small_cholesky: sizes of the buffers");
  over_batch<T>(pool, batch, n, [&](int64_t first, int64_t last, T* work) {
    loop(a.typed_data(), l->typed_data(), n, first, last, work);
  });
  return ffi::Error::Success();
}

template <class T, ffi::DataType dtype, class Loop>
ffi::Error run_adjoint(Loop loop, ffi::ThreadPool& pool, ffi::Buffer<dtype> l, ffi::Buffer<dtype> ct,
                       ffi::ResultBuffer<dtype> out, int64_t batch) {
  const int64_t n = l.dimensions().size() < 2 ? -1 : l.dimensions().back();
  if (n < 0 || n > kSmall || !fits(l.element_count(), batch, n, n) ||
      !fits(ct.element_count(), batch, n, n) || !fits(out->element_count(), batch, n, n))
    return ffi::Error::InvalidArgument("small_cholesky_adjoint: sizes of the buffers");
  over_batch<T>(pool, batch, n, [&](int64_t first, int64_t last, T* work) {
    loop(l.typed_data(), ct.typed_data(), out->typed_data(), n, first, last, work);
  });
  return ffi::Error::Success();
}

template <class T, ffi::DataType dtype, class Loop>
ffi::Error run_solve(Loop loop, ffi::ThreadPool& pool, ffi::Buffer<dtype> l, ffi::Buffer<dtype> b,
                     ffi::ResultBuffer<dtype> out, int64_t batch, int64_t batched, int64_t mode) {
  const bool ranks = l.dimensions().size() >= 2 && b.dimensions().size() >= 2;
  const int64_t n = ranks ? l.dimensions().back() : -1, k = ranks ? b.dimensions().back() : -1;
  if (n < 0 || n > kSmall || mode < 1 || mode > 3 || !fits(l.element_count(), batched & 1 ? batch : 1, n, n) ||
      !fits(b.element_count(), batched & 2 ? batch : 1, n, k) || !fits(out->element_count(), batch, n, k))
    return ffi::Error::InvalidArgument("small_triangular_solve: mode or sizes of the buffers");
  SmallSolve<T> p{l.typed_data(),           b.typed_data(), out->typed_data(), batched & 1 ? n * n : 0,
                  batched & 2 ? n * k : 0, n,              k,                 (mode & 1) != 0,
                  (mode & 2) != 0};
  over_batch<T>(pool, batch, n, [&](int64_t first, int64_t last, T* work) { loop(p, first, last, work); });
  return ffi::Error::Success();
}

#define VARAX_SMALL(dtype, T, suffix)                                                                         \
  ffi::Error cholesky_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> a, ffi::ResultBuffer<dtype> l,        \
                               int64_t batch) {                                                               \
    return run_cholesky<T>(VARAX_PICK(small_cholesky_##suffix), pool, a, l, batch);                           \
  }                                                                                                           \
  ffi::Error adjoint_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> l, ffi::Buffer<dtype> ct,              \
                              ffi::ResultBuffer<dtype> out, int64_t batch) {                                  \
    return run_adjoint<T>(VARAX_PICK(small_cholesky_adjoint_##suffix), pool, l, ct, out, batch);              \
  }                                                                                                           \
  ffi::Error solve_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> l, ffi::Buffer<dtype> b,                 \
                            ffi::ResultBuffer<dtype> out, int64_t batch, int64_t batched, int64_t mode) {     \
    return run_solve<T>(VARAX_PICK(small_solve_##suffix), pool, l, b, out, batch, batched, mode);             \
  }
VARAX_SMALL(ffi::F32, float, f32)
VARAX_SMALL(ffi::F64, double, f64)

#define VARAX_CHOLESKY_BINDING(dtype) \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<dtype>>().Ret<ffi::Buffer<dtype>>().Attr<int64_t>("batch")
#define VARAX_ADJOINT_BINDING(dtype) \
  ffi::Ffi::Bind()                   \
      .Ctx<ffi::ThreadPool>()        \
      .Arg<ffi::Buffer<dtype>>()     \
      .Arg<ffi::Buffer<dtype>>()     \
      .Ret<ffi::Buffer<dtype>>()     \
      .Attr<int64_t>("batch")

}  // namespace

VARAX_HANDLER(varax_small_cholesky_f32, cholesky_f32, VARAX_CHOLESKY_BINDING(ffi::F32));
VARAX_HANDLER(varax_small_cholesky_f64, cholesky_f64, VARAX_CHOLESKY_BINDING(ffi::F64));
VARAX_HANDLER(varax_small_cholesky_adjoint_f32, adjoint_f32, VARAX_ADJOINT_BINDING(ffi::F32));
VARAX_HANDLER(varax_small_cholesky_adjoint_f64, adjoint_f64, VARAX_ADJOINT_BINDING(ffi::F64));
VARAX_HANDLER(varax_small_triangular_solve_f32, solve_f32,
              VARAX_ADJOINT_BINDING(ffi::F32).Attr<int64_t>("batched").Attr<int64_t>("mode"));
VARAX_HANDLER(varax_small_triangular_solve_f64, solve_f64,
              VARAX_ADJOINT_BINDING(ffi::F64).Attr<int64_t>("batched").Attr<int64_t>("mode"));

}  // namespace varax
