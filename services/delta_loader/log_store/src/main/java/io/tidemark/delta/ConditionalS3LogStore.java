package io.tidemark.delta;

import io.delta.storage.HadoopFileSystemLogStore;
import java.io.ByteArrayOutputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.io.InterruptedIOException;
import java.net.SocketTimeoutException;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileAlreadyExistsException;
import java.time.Instant;
import java.util.Arrays;
import java.util.Iterator;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSDataOutputStreamBuilder;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.FilterFileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.s3a.RemoteFileChangedException;
import org.apache.hadoop.fs.s3a.S3AFileSystem;

/**
 * Commits of a Delta table on S3 by any number of drivers: a commit's file is created with {@code If-None-Match: *}, so
 * that S3 itself decides which of several writers has the version. Delta's stock store for S3 looks whether the file is
 * there and then writes it unconditionally: of two drivers, one may replace the other's acknowledged commit.
 *
 * <p>Every writer of a table must use it: one that doesn't breaks it for all.
 *
 * <p>{@link #write} without overwrite has three ends. It returns: the file is there with these bytes. It throws {@link
 * FileAlreadyExistsException}: somebody else's file is there, and these bytes will never be. It throws another
 * exception: nobody knows; the file may be there, or may yet come. It never guesses between the first two.
 */
public class ConditionalS3LogStore extends HadoopFileSystemLogStore {
    /** Milliseconds since 1970; from then on a commit is refused. For a job whose input may have been cleaned up. */
    public static final String BEFORE = "tidemark.commit.before.ms";

    private static final String CONDITIONAL = "fs.option.create.conditional.overwrite";
    private static final int ATTEMPTS = 4;
    private static final long PAUSE_MS = 200;

    /** File systems seen to refuse a second create. */
    private static final Set<URI> HONOURING = ConcurrentHashMap.newKeySet();

    /** Until this Hadoop's S3A turns out to be made otherwise inside. */
    private volatile boolean startsAfter = true;

    private enum Found {
        NOTHING,
        OURS,
        ANOTHERS
    }

    public ConditionalS3LogStore(Configuration hadoopConf) {
        super(hadoopConf);
    }

    @Override
    public void write(Path path, Iterator<String> actions, Boolean overwrite, Configuration hadoopConf)
            throws IOException {
        FileSystem fs = path.getFileSystem(hadoopConf);
        // All of it before anything is opened: an iterator that fails halfway must leave no half file.
        byte[] body = gather(actions);
        if (overwrite) {
            send(fs.create(path, true), body);
        } else {
            create(fs, path, body, hadoopConf.getLong(BEFORE, Long.MAX_VALUE));
        }
    }

    /** A PUT, or the completion of a multipart upload: the file is there as a whole or not at all. */
    @Override
    public Boolean isPartialWriteVisible(Path path, Configuration hadoopConf) {
        return false;
    }

    /**
     * The files of {@code path}'s folder whose names are at or behind its own, by name.
     *
     * <p>Asks S3 for those alone: the inherited one reads the whole log, a request for each thousand files, at each look
     * for new commits.
     */
    @Override
    public Iterator<FileStatus> listFrom(Path path, Configuration hadoopConf) throws IOException {
        FileSystem fs = unwrap(path.getFileSystem(hadoopConf));
        if (startsAfter && fs instanceof S3AFileSystem) {
            try {
                return S3Listing.from((S3AFileSystem) fs, fs.makeQualified(path)).iterator();
            } catch (LinkageError otherHadoop) {
                startsAfter = false;
            }
        }
        return super.listFrom(path, hadoopConf);
    }

    private static byte[] gather(Iterator<String> actions) throws IOException {
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        while (actions.hasNext()) {
            body.write(actions.next().getBytes(StandardCharsets.UTF_8));
            body.write('\n');
        }
        return body.toByteArray();
    }

    /**
     * Whatever the failed call said, what stands there tells the outcome. Our bytes: it was applied, and the answer
     * lost (a commit's bytes hold a unique transaction id, so that nobody else writes the same). Other bytes: another
     * writer was first, and ours will be refused whenever they arrive. Nothing: not applied, or not yet; the same bytes
     * once more, since S3 wants a 409 (ConditionalRequestConflict) repeated, and S3A doesn't do it.
     */
    private static void create(FileSystem fs, Path path, byte[] body, long beforeMs) throws IOException {
        IOException failure = null;
        for (int attempt = 1; attempt <= ATTEMPTS; attempt++) {
            if (attempt > 1) {
                pause(attempt, failure);
            }
            checkIsInTime(path, beforeMs, failure);
            try {
                send(openNew(fs, path), body);
                checkIsRefused(fs, path, body);
                return;
            } catch (IOException error) {
                failure = withEarlier(error, failure);
            }
            if (isInterrupted(failure)) {
                throw failure;
            }
            Found found = readBack(fs, path, body, failure);
            if (found == Found.OURS) {
                return;
            }
            if (found == Found.ANOTHERS) {
                throw alreadyExists(path, failure);
            }
        }
        throw unknown(path, "it isn't there now, and may still come", failure);
    }

    private static void checkIsInTime(Path path, long beforeMs, IOException failure) throws IOException {
        if (System.currentTimeMillis() < beforeMs) {
            return;
        }
        String late = path + " isn't written: " + BEFORE + " was " + Instant.ofEpochMilli(beforeMs);
        throw failure == null ? new IOException(late) : unknown(path, "no time is left for another attempt", failure);
    }

    private static FSDataOutputStream openNew(FileSystem fs, Path path) throws IOException {
        try {
            FSDataOutputStreamBuilder<?, ?> builder = fs.createFile(path);
            builder.overwrite(false);
            builder.must(CONDITIONAL, true);
            return builder.build();
        } catch (IllegalArgumentException | UnsupportedOperationException refused) {
            throw new UnsupportedOperationException(
                    path + ": its file system can't create a file on condition that there is none;"
                            + " S3A of Hadoop 3.4.2 or newer can",
                    refused);
        }
    }

    private static void send(FSDataOutputStream out, byte[] body) throws IOException {
        try {
            out.write(body);
        } catch (IOException | RuntimeException error) {
            // Not closed: that would complete the file with what has been written so far.
            try {
                out.abort();
            } catch (RuntimeException unable) {
                error.addSuppressed(unable);
            }
            throw error;
        }
        out.close();
    }

    /**
     * Once per bucket and JVM, after a commit: its own bytes once more, which S3 must refuse. A store that doesn't know
     * the condition takes them, harmlessly, and would have taken another writer's.
     */
    private static void checkIsRefused(FileSystem fs, Path path, byte[] body) {
        if (HONOURING.contains(fs.getUri())) {
            return;
        }
        try {
            send(openNew(fs, path), body);
        } catch (RemoteFileChangedException refused) {
            HONOURING.add(fs.getUri());
            return;
        } catch (IOException unclear) {
            // The commit stands; the next one asks again.
            if (isInterrupted(unclear)) {
                Thread.currentThread().interrupt();
            }
            return;
        }
        throw new IllegalStateException(
                path + " was created twice: this object store ignores If-None-Match, so concurrent commits would be"
                        + " lost. It is no store for a Delta table with several writers");
    }

    /** Throws when that fails too: then nobody knows. */
    private static Found readBack(FileSystem fs, Path path, byte[] body, IOException failure) throws IOException {
        try (InputStream stored = fs.open(path)) {
            return Arrays.equals(stored.readNBytes(body.length + 1), body) ? Found.OURS : Found.ANOTHERS;
        } catch (FileNotFoundException absent) {
            return Found.NOTHING;
        } catch (IOException error) {
            throw unknown(path, "reading it back failed", withEarlier(error, failure));
        }
    }

    private static void pause(int attempt, IOException failure) throws IOException {
        long longest = PAUSE_MS << (attempt - 1);
        try {
            Thread.sleep(ThreadLocalRandom.current().nextLong(longest / 2, longest));
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            throw withEarlier(new InterruptedIOException("interrupted before the next attempt"), failure);
        }
    }

    private static boolean isInterrupted(IOException error) {
        boolean said = error instanceof InterruptedIOException && !(error instanceof SocketTimeoutException);
        return said || Thread.currentThread().isInterrupted();
    }

    private static FileAlreadyExistsException alreadyExists(Path path, IOException failure) {
        FileAlreadyExistsException taken = new FileAlreadyExistsException(path.toString());
        taken.initCause(failure);
        return taken;
    }

    private static IOException unknown(Path path, String why, IOException failure) {
        return new IOException(
                "It is unknown whether " + path + " was written: " + why + ". Look at the table before writing again",
                failure);
    }

    private static <E extends IOException> E withEarlier(E error, IOException earlier) {
        if (earlier != null && earlier != error) {
            error.addSuppressed(earlier);
        }
        return error;
    }

    private static FileSystem unwrap(FileSystem fs) {
        return fs instanceof FilterFileSystem ? unwrap(((FilterFileSystem) fs).getRawFileSystem()) : fs;
    }
}
