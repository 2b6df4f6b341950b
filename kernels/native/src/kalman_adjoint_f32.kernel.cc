#include "kalman_adjoint.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {

void kalman_adjoint_f32(const KalmanAdjoint<float>* problem, int64_t group) {
  const KalmanModel<float>& of = problem->model;
  pick<float>(of, [&](auto x, auto m) { adjoint<typename decltype(x)::X, decltype(m)::value>(*problem, group); });
}

}  // namespace VARAX_ISA
}  // namespace varax
