#include "kalman_adjoint.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {

void kalman_adjoint_f64(const KalmanAdjoint<double>* problem, int64_t group) {
  const KalmanModel<double>& of = problem->model;
  pick<double>(of, [&](auto x, auto m) { adjoint<typename decltype(x)::X, decltype(m)::value>(*problem, group); });
}

}  // namespace VARAX_ISA
}  // namespace varax
