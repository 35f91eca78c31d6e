//! Views of shared arrays as arrays of the crate `ndarray`.

use bytemuck::Pod;
use ndarray::{ArrayView, ArrayViewMut, Dimension, ShapeError, StrideShape};

use super::{ArrayReadGuard, ArrayWriteGuard};

impl<T: Pod> ArrayReadGuard<'_, T> {
    /// Returns a view of the elements in this shape, without copying. Requires the feature
    /// `ndarray`.
    ///
    /// # Errors
    /// If the shape has more elements than the array.
    pub fn view<D: Dimension>(
        &self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayView<'_, T, D>, ShapeError> {
        ArrayView::from_shape(shape, self)
    }
}

impl<T: Pod> ArrayWriteGuard<'_, T> {
    /// Returns a view of the elements in this shape, without copying. Requires the feature
    /// `ndarray`.
    ///
    /// # Errors
    /// If the shape has more elements than the array.
    pub fn view<D: Dimension>(
        &self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayView<'_, T, D>, ShapeError> {
        ArrayView::from_shape(shape, self)
    }

    /// Returns a mutable view of the elements in this shape, without copying. Requires the feature
    /// `ndarray`.
    ///
    /// # Errors
    /// If the shape has more elements than the array.
    pub fn view_mut<D: Dimension>(
        &mut self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayViewMut<'_, T, D>, ShapeError> {
        ArrayViewMut::from_shape(shape, self)
    }
}
