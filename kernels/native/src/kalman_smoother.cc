// FFI handlers of the Kalman smoother.
#include "kalman_reader.h"

namespace varax {
namespace {

template <class T>
ffi::Error smoother(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                    ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies,
                    ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanSmoother<T> problem{};
  problem.model = model<T>(read, sizes, varies, batched);
  if (!read.error.empty()) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, steps = problem.model.steps;
  problem.mean = read.in<T>("filtered means", n, steps, true, true);
  problem.cov = read.in<T>("filtered covariances", n * n, steps, true, true);
  problem.to_mean = read.out<T>("means", n, steps, true);
  problem.to_cov = read.out<T>("covariances", n * n, steps, true);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  if (problem.model.batch == 0 || steps == 0) return ffi::Error::Success();
  if constexpr (sizeof(T) == 4) {
    auto groups = VARAX_PICK(kalman_groups_f32);
    auto run = VARAX_PICK(kalman_smoother_f32);
    parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  } else {
    auto groups = VARAX_PICK(kalman_groups_f64);
    auto run = VARAX_PICK(kalman_smoother_f64);
    parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace varax

VARAX_HANDLER(varax_kalman_smoother_f32, varax::smoother<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_smoother_f64, varax::smoother<double>, varax::kalman_binding());
