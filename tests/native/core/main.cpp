// Runs csrc/cuda on the emulated runtime (emulated_cuda/), beside the same calls of csrc/cpu:
// results must have the same bits, whatever the schedule. Sanitizers watch the order of accesses
// and their bounds. Usage: core [seeds] [first seed]
#include <emulated.h>

#include <cstdio>
#include <cstdlib>

#include "program.h"

namespace torch_gas::tests {
namespace {

void run_all() {
  emulated::reset(seed);
  Random random(seed);
  all_moves(random);
  for (int i = 0; i < 8; ++i) {
    staged(random);
    in_place(random, Place::device);
    in_place(random, Place::locked);
  }
  registration(random, 0);
  registration(random, 1);
  devices(random);
  errors(random);
  emulated::reset(seed);
}

}  // namespace

}  // namespace torch_gas::tests

int main(int argc, char** argv) {
  const uint64_t seeds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  for (torch_gas::tests::seed = first; torch_gas::tests::seed < first + seeds;
       ++torch_gas::tests::seed)
    torch_gas::tests::run_all();
  std::puts("device and host agree");
}
