// FFI handlers of series that share their covariances.
#include "kalman_reader.h"

namespace varax {
namespace {

// The model has the batch where its operands have it; the covariances' parameters are shared.
template <class T>
std::string unshared(const KalmanModel<T>& of) {
  const bool apart = of.A.series || of.Q.series || of.H.series || of.R.series || of.P0.series || of.mask.series;
  return apart && of.batch > 1 ? "kalman: these series do not share their covariances" : "";
}

// The model, the gains and S^-1 of every step, which both handlers read first; false if something is wrong.
template <class Problem, class... Spans>
bool begin(Reader& read, Problem& problem, const Spans&... attributes) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(problem.gain.data)>>;
  problem.model = model<T>(read, attributes...);
  if (read.error.empty()) read.error = unshared(problem.model);
  if (!read.error.empty()) return false;
  const int64_t n = problem.model.n, m = problem.model.m, steps = problem.model.steps;
  problem.gain = read.in<T>("gains", n * m, steps, true, false);
  problem.precision = read.in<T>("precisions", m * m, steps, true, false);
  return true;
}

int64_t groups_of(int64_t batch) { return (batch + kKalmanTogether - 1) / kKalmanTogether; }

template <class T>
ffi::Error means(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Span<const int64_t> sizes,
                 ffi::Span<const int64_t> varies, ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanMeans<T> problem{};
  if (!begin(read, problem, sizes, varies, batched)) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, m = problem.model.m, steps = problem.model.steps;
  problem.square = read.out<T>("squares", 1, 0, false).data;
  problem.mean = read.out<T>("means", n, steps, true, true);
  problem.white = read.out<T>("white", m, steps, true, true);
  problem.checkpoint = read.out<T>("checkpoints", n, checkpoints(steps), true, true);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  auto run = VARAX_PICK_OF(T, kalman_means);
  parallel(pool, groups_of(problem.model.batch), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

template <class T>
ffi::Error means_adjoint(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                         ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies,
                         ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanMeansAdjoint<T> problem{};
  if (!begin(read, problem, sizes, varies, batched)) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, m = problem.model.m, steps = problem.model.steps;
  const int64_t moves = std::max<int64_t>(steps - 1, 0);
  problem.checkpoint = read.in<T>("checkpoints", n, checkpoints(steps), true, true);
  problem.d_log_likelihood = read.in<T>("the log-likelihood's cotangent", 1, 0, false, true, true);
  problem.d_mean = read.in<T>("the means' cotangents", n, steps, true, true, true);
  problem.d_y = read.out<T>("y", m, steps, true);
  problem.d_m0 = read.out<T>("m0", n, 0, false);
  problem.d_b = read.out<T>("b", n, moves, varies[kB]);
  problem.d_d = read.out<T>("d", m, steps, varies[kD]);
  read.batch = groups_of(problem.model.batch);  // of what is summed over the series of a group
  problem.d_A = read.out<T>("A", n * n, moves, varies[kA]);
  problem.d_H = read.out<T>("H", m * n, steps, varies[kH]);
  problem.sums = read.out<T>("the sums over series", n * m + 2 * m * m, steps, true);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  auto run = VARAX_PICK_OF(T, kalman_means_adjoint);
  parallel(pool, groups_of(problem.model.batch), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace varax

VARAX_HANDLER(varax_kalman_means_f32, varax::means<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_means_f64, varax::means<double>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_means_adjoint_f32, varax::means_adjoint<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_means_adjoint_f64, varax::means_adjoint<double>, varax::kalman_binding());
