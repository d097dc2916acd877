/* Empty parallel regions, each of which ends in a barrier: the mean microseconds of one. */
#include <omp.h>
#include <stdio.h>

int main(void) {
    volatile int sink = 0;
    double end = omp_get_wtime() + 0.2;
    while (omp_get_wtime() < end) {
#pragma omp parallel
        sink;
    }
    double start = omp_get_wtime();
    long regions = 0;
    while (omp_get_wtime() < start + 0.5) {
        for (int repeat = 0; repeat < 20; repeat++) {
#pragma omp parallel
            sink;
        }
        regions += 20;
    }
    printf("us: %.4f\n", (omp_get_wtime() - start) * 1e6 / regions);
    return 0;
}
