#include "kalman_adjoint.h"

namespace varax {
namespace VARAX_ISA {

void kalman_adjoint_f64(const KalmanAdjoint<double>* problem, int64_t group) {
  adjoint_of(*problem, group);
}

}  // namespace VARAX_ISA
}  // namespace varax
