// FFI handlers of the Matern log-likelihood.
#include "matern.h"

#include "handler.h"

namespace varax {
namespace {

template <class T>
bool holds(const ffi::AnyBuffer& buffer, int64_t count) {
  return static_cast<int64_t>(buffer.size_bytes()) == count * static_cast<int64_t>(sizeof(T));
}

// Where a result is written; one without elements is not wanted. False if its size is wrong.
template <class T>
bool wanted(T*& to, ffi::AnyBuffer result, int64_t count) {
  to = result.element_count() ? reinterpret_cast<T*>(result.untyped_data()) : nullptr;
  return !to || holds<T>(result, count);
}

// Operands: times, y, variance, length_scale, noise_sd. False if a size is wrong.
template <class T>
bool operands(MaternProblem<T>& of, ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> batched,
              ffi::AnyBuffer (&in)[5]) {
  if (sizes.size() != 4 || batched.size() != 5) return false;
  of.order = sizes[0], of.steps = sizes[1], of.batch = sizes[2], of.noise_step = sizes[3];
  if (of.order < 0 || of.order > 2 || of.steps < 0 || of.batch < 0 || (of.noise_step != 0 && of.noise_step != 1))
    return false;
  const int64_t size[5] = {of.steps, of.steps, 1, 1, of.noise_step ? of.steps : 1};
  const T** to[5] = {&of.times, &of.y, &of.variance, &of.length_scale, &of.noise_sd};
  for (int i = 0; i < 5; ++i) {
    if (!holds<T>(in[i], size[i] * (batched[i] ? of.batch : 1))) return false;
    *to[i] = reinterpret_cast<const T*>(in[i].untyped_data());
    of.series[i] = batched[i] ? size[i] : 0;
  }
  return true;
}

int64_t kept_size(int64_t order) { return (order + 1) + (order + 1) * (order + 2) / 2; }

template <class T>
ffi::Error value(ffi::ThreadPool pool, ffi::AnyBuffer times, ffi::AnyBuffer y, ffi::AnyBuffer variance,
                 ffi::AnyBuffer length_scale, ffi::AnyBuffer noise_sd, ffi::Result<ffi::AnyBuffer> log_likelihood,
                 ffi::Result<ffi::AnyBuffer> kept, ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> batched) {
  MaternProblem<T> of{};
  ffi::AnyBuffer in[5] = {times, y, variance, length_scale, noise_sd};
  if (!operands(of, sizes, batched, in) || !holds<T>(*log_likelihood, of.batch))
    return ffi::Error::InvalidArgument("matern: operands of wrong sizes");
  of.log_likelihood = reinterpret_cast<T*>(log_likelihood->untyped_data());
  if (kept->element_count() > 0) {
    if (!holds<T>(*kept, of.batch * matern_segments(of.steps) * kept_size(of.order)))
      return ffi::Error::InvalidArgument("matern: residuals of a wrong size");
    of.kept = reinterpret_cast<T*>(kept->untyped_data());
  }
  auto run = VARAX_PICK_OF(T, matern_value);
  parallel(pool, of.batch, [&](int64_t s) { run(&of, s); });
  return ffi::Error::Success();
}

template <class T>
ffi::Error adjoint(ffi::ThreadPool pool, ffi::AnyBuffer times, ffi::AnyBuffer y, ffi::AnyBuffer variance,
                   ffi::AnyBuffer length_scale, ffi::AnyBuffer noise_sd, ffi::AnyBuffer kept,
                   ffi::AnyBuffer d_log_likelihood, ffi::Result<ffi::AnyBuffer> d_times,
                   ffi::Result<ffi::AnyBuffer> d_y, ffi::Result<ffi::AnyBuffer> d_variance,
                   ffi::Result<ffi::AnyBuffer> d_length_scale, ffi::Result<ffi::AnyBuffer> d_noise_sd,
                   ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> batched) {
  MaternProblem<T> of{};
  ffi::AnyBuffer in[5] = {times, y, variance, length_scale, noise_sd};
  const bool right = operands(of, sizes, batched, in);
  const int64_t noises = of.noise_step ? of.steps : 1;
  if (!right || !holds<T>(kept, of.batch * matern_segments(of.steps) * kept_size(of.order)) ||
      !holds<T>(d_log_likelihood, of.batch) || !wanted(of.d_times, *d_times, of.batch * of.steps) ||
      !wanted(of.d_y, *d_y, of.batch * of.steps) || !holds<T>(*d_variance, of.batch) ||
      !holds<T>(*d_length_scale, of.batch) || !wanted(of.d_noise_sd, *d_noise_sd, of.batch * noises))
    return ffi::Error::InvalidArgument("matern: operands or cotangents of wrong sizes");
  of.kept = const_cast<T*>(reinterpret_cast<const T*>(kept.untyped_data()));
  of.d_log_likelihood = reinterpret_cast<const T*>(d_log_likelihood.untyped_data());
  of.d_variance = reinterpret_cast<T*>(d_variance->untyped_data());
  of.d_length_scale = reinterpret_cast<T*>(d_length_scale->untyped_data());
  auto run = VARAX_PICK_OF(T, matern_adjoint);
  parallel(pool, of.batch, [&](int64_t s) { run(&of, s); });
  return ffi::Error::Success();
}

auto value_binding() {
  using B = ffi::AnyBuffer;
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<B>().Arg<B>().Arg<B>().Arg<B>().Arg<B>().Ret<B>().Ret<B>()
      .Attr<ffi::Span<const int64_t>>("sizes").Attr<ffi::Span<const int64_t>>("batched");
}

auto adjoint_binding() {
  using B = ffi::AnyBuffer;
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<B>().Arg<B>().Arg<B>().Arg<B>().Arg<B>().Arg<B>().Arg<B>()
      .Ret<B>().Ret<B>().Ret<B>().Ret<B>().Ret<B>()
      .Attr<ffi::Span<const int64_t>>("sizes").Attr<ffi::Span<const int64_t>>("batched");
}

}  // namespace
}  // namespace varax

VARAX_HANDLER(varax_matern_value_f32, varax::value<float>, varax::value_binding());
VARAX_HANDLER(varax_matern_value_f64, varax::value<double>, varax::value_binding());
VARAX_HANDLER(varax_matern_adjoint_f32, varax::adjoint<float>, varax::adjoint_binding());
VARAX_HANDLER(varax_matern_adjoint_f64, varax::adjoint<double>, varax::adjoint_binding());
