// cuBLAS and cuDNN: descriptors without content, and calls that count as one kernel each.
//
// A function that ignores its arguments is declared without them. Status 0 is success in both libraries.
#include <cstdlib>
#include <cstring>

#include "fake.h"

static thread_local cudaStream_t blas_stream, dnn_stream;

static int run(const char* name, cudaStream_t stream) { return fake::launch_kernel(name, stream) != cudaSuccess; }

// Larger than any descriptor.
constexpr size_t kDescriptorBytes = 512;

static int create(void** descriptor) {
    *descriptor = calloc(1, kDescriptorBytes);
    return 0;
}

static int destroy(void* descriptor) {
    free(descriptor);
    return 0;
}

#define IGNORED(name) \
    API int name(...) { return 0; }
#define BLAS_KERNEL(name) \
    API int name(...) { return run(#name, blas_stream); }
#define DNN_KERNEL(name) \
    API int name(...) { return run(#name, dnn_stream); }
#define CREATED(name) \
    API int name(void** descriptor, ...) { return create(descriptor); }
#define DESTROYED(name) \
    API int name(void* descriptor) { return destroy(descriptor); }

CREATED(cublasCreate_v2)
DESTROYED(cublasDestroy_v2)

API int cublasSetStream_v2(void*, cudaStream_t stream) {
    blas_stream = stream;
    return 0;
}

API int cublasGetMathMode(void*, int* mode) { return *mode = 0; }

API int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }

IGNORED(cublasSetWorkspace_v2)
IGNORED(cublasSetMathMode)
IGNORED(cublasSetPointerMode_v2)
IGNORED(cublasSetSmCountTarget)

BLAS_KERNEL(cublasGemmEx)
BLAS_KERNEL(cublasGemmStridedBatchedEx)
BLAS_KERNEL(cublasSgemm_v2)
BLAS_KERNEL(cublasSgemmEx)
BLAS_KERNEL(cublasSgemmStridedBatched)
BLAS_KERNEL(cublasSgemv_v2)
BLAS_KERNEL(cublasSdot_v2)
BLAS_KERNEL(cublasDotEx)
BLAS_KERNEL(cublasLtMatmul)

CREATED(cublasLtMatmulDescCreate)
DESTROYED(cublasLtMatmulDescDestroy)
CREATED(cublasLtMatmulPreferenceCreate)
DESTROYED(cublasLtMatmulPreferenceDestroy)
CREATED(cublasLtMatrixLayoutCreate)
DESTROYED(cublasLtMatrixLayoutDestroy)
IGNORED(cublasLtMatmulDescSetAttribute)
IGNORED(cublasLtMatmulPreferenceSetAttribute)
IGNORED(cublasLtMatrixLayoutSetAttribute)

API int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, void* results, int* count) {
    // An algorithm that needs no workspace.
    memset(results, 0, 64);
    *count = 1;
    return 0;
}

CREATED(cudnnCreate)
DESTROYED(cudnnDestroy)

API int cudnnSetStream(void*, cudaStream_t stream) {
    dnn_stream = stream;
    return 0;
}

CREATED(cudnnCreateTensorDescriptor)
DESTROYED(cudnnDestroyTensorDescriptor)
IGNORED(cudnnSetTensorNdDescriptor)
CREATED(cudnnCreateActivationDescriptor)
DESTROYED(cudnnDestroyActivationDescriptor)
IGNORED(cudnnSetActivationDescriptor)

DNN_KERNEL(cudnnBatchNormalizationForwardTrainingEx)
DNN_KERNEL(cudnnBatchNormalizationForwardInference)
DNN_KERNEL(cudnnBatchNormalizationBackwardEx)

API int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, size_t* bytes) {
    *bytes = 1 << 16;
    return 0;
}

API int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void*, int, int, void*, void*, void*, void*, void*, void*, void*, size_t* bytes) {
    *bytes = 1 << 16;
    return 0;
}

API int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* bytes) {
    *bytes = 1 << 16;
    return 0;
}

// Convolutions use cuDNN's graph API: a heuristic that finds one engine, and plans that are executed.
API int cudnnBackendCreateDescriptor(int, void** descriptor) { return create(descriptor); }

API int cudnnBackendDestroyDescriptor(void* descriptor) { return destroy(descriptor); }

IGNORED(cudnnBackendFinalize)
IGNORED(cudnnBackendSetAttribute)
DNN_KERNEL(cudnnBackendExecute)

// Attributes and types by their numbers in cudnn_graph_v9.h.
API int cudnnBackendGetAttribute(
    void*, int attribute, int type, int64_t requested, int64_t* count, void* values) {
    constexpr int kHeuristicResults = 202, kEngineGlobalIndex = 300, kPlanWorkspaceBytes = 402;
    constexpr int kNumericalNotes = 1303, kBehaviorNotes = 1305;
    constexpr int kInt64 = 3, kInt32 = 23, kChar = 24;
    bool is_one = attribute == kHeuristicResults || attribute == kEngineGlobalIndex;
    bool is_none = attribute == kNumericalNotes || attribute == kBehaviorNotes;
    if (count) *count = is_one || (!is_none && (type == kInt64 || type == kInt32));
    if (is_one || is_none || !values || requested < 1) return 0;
    if (type == kInt64) *static_cast<int64_t*>(values) = attribute == kPlanWorkspaceBytes ? 1 << 16 : 0;
    if (type == kInt32) *static_cast<int*>(values) = 0;
    if (type == kChar) *static_cast<char*>(values) = 0;
    return 0;
}
